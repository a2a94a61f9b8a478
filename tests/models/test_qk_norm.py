"""Norms on queries and keys: with them, how large the projections make queries and keys has no say in anything."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hwm.config import registered
from hwm.nn.attention import Attention, CrossAttention
from hwm.nn.conditioning import CrossAttend
from hwm.nn.flow_streams import Heads
from hwm.nn.gqa import GroupedAttention
from tests.models.toys import toy_batch, toy_spec

# name -> options under which all queries and keys are normed
NORMED = {
    "cosmos_ar": {},
    "flow_hwm": {"variant": "base"},
    "flow_hwm-split": {"variant": "split"},
    "genie": {"qk_norm": True},
    "hma_continuous": {"qk_norm": True, "action_network": ("cross_attend",)},
    "hma_discrete": {"qk_norm": True, "action_network": ("cross_attend",)},
    "masked_hwm": {"qk_norm": True},
    "masked_hwm-split": {"qk_norm": True, "variant": "split"},
    "next_block": {"qk_norm": True},
}


def projections(module: nn.Module) -> list[torch.Tensor]:
    """The weights, and their biases, that make the queries and keys of one module of attention."""
    if isinstance(module, Heads):
        normed = len(module.norms)
        return [module.linear.weight.chunk(module.parts)[i] for i in range(normed)]
    if isinstance(module, GroupedAttention):
        return [module.wq.weight, module.wk.weight]
    if isinstance(module, (CrossAttention, CrossAttend)):
        return [module.q.weight, module.k.weight]
    if isinstance(module, Attention) or (hasattr(module, "qkv") and isinstance(module.qkv, nn.Linear)):
        parts = [module.qkv.weight] + ([] if module.qkv.bias is None else [module.qkv.bias])
        return [x.chunk(3)[i] for x in parts for i in range(2)]
    return []


@torch.no_grad()
def enlarged(model: nn.Module, factor: float) -> tuple[nn.Module, int]:
    """A copy with larger queries and keys, and of how many modules."""
    model, found = copy.deepcopy(model), 0
    for module in model.modules():
        weights = projections(module)
        found += bool(weights)
        for weight in weights:
            weight.mul_(factor)
    return model, found


@torch.no_grad()
def random_weights(model: nn.Module) -> nn.Module:
    """Weights that let everything pass, as those of trained models do: gates and read-outs begin at zero."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
        elif "norm" not in name:
            nn.init.normal_(weight, std=0.3)
    return model.eval()


@pytest.mark.parametrize("case", NORMED)
def test_the_size_of_queries_and_keys_does_not_matter_where_they_are_normed(case: str) -> None:
    name, channels = case.split("-")[0], 4 if case.startswith(("flow", "hma_continuous")) else None
    spec, owner = toy_spec(channels=channels), registered(name)
    config = {**vars(owner.tiny()), **NORMED[case]}  # type: ignore[attr-defined]
    model = random_weights(owner.Config(**config).build(spec))
    large, _ = enlarged(model, 30.0)
    larger, modules = enlarged(model, 300.0)
    assert modules >= config["depth"]
    batch = toy_batch(spec, config["past"] + config["horizon"])

    def loss(model: nn.Module) -> torch.Tensor:
        torch.manual_seed(1)
        return model(batch)[0]

    torch.testing.assert_close(loss(larger), loss(large), atol=1e-4, rtol=1e-4)
    unnormed, _ = enlarged(model, 30.0)
    for module in unnormed.modules():
        for part in ("norm", "q_norm", "k_norm"):
            if projections(module) and hasattr(module, part):
                setattr(module, part, nn.Identity())
        if isinstance(module, Heads):
            module.norms = nn.ModuleList(nn.Identity() for _ in module.norms)
    assert (loss(unnormed) - loss(large)).abs() > 1e-3, "queries and keys have a part in the loss"
