"""What the verbs of `hwm` do: parse options, call the library, show the result."""
