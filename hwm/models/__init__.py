"""World models, a file a family. Importing this package registers them all."""

from hwm.models import (
    cosmos_ar,
    flow_hwm,
    flow_hwm_uvit,
    genie,
    hma_continuous,
    hma_discrete,
    masked_hwm,
    masked_hwm_shared,
    next_block,
)

__all__ = [
    "cosmos_ar",
    "flow_hwm",
    "flow_hwm_uvit",
    "genie",
    "hma_continuous",
    "hma_discrete",
    "masked_hwm",
    "masked_hwm_shared",
    "next_block",
]
