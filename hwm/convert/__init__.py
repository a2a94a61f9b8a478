"""Published models, in and out, and how near ours are to them. A file a family, and a verb.

`from_reference` makes our model of a public implementation's config and state dict; `families` is the table of those
that are known.
"""

from hwm.convert.family import Family, families, from_reference, register
from hwm.convert.public import Inner

__all__ = ["Family", "Inner", "families", "from_reference", "register"]
