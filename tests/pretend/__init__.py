"""A graphics card that is not there, and what runs on it: see `tests.pretend.device`."""
