"""World models, a file a family. Importing this package registers them all."""

from hwm.models import masked_hwm, masked_hwm_shared

__all__ = ["masked_hwm", "masked_hwm_shared"]
