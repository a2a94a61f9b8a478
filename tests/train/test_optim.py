"""Optimizers: who trains what, how fast, and what the average is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwm.config import REGISTRY, Trainable
from hwm.errors import HwmError
from hwm.models.masked_hwm import MaskedHWM
from hwm.train.checkpoint import load_average, save_model
from hwm.train.optim import TYPICAL, MovingAverage, gradient_norm, learning_rate, optimizers, train_only
from hwm.types import ActionSpec, DataSpec, LatentSpec
from tests.models.test_registry import FAMILIES, build
from tests.models.toys import toy_spec
from tests.train.toy import Toy

ACTION = ActionSpec(2, ("a", "b"), (0.0, 0.0), (1.0, 1.0))
SPEC = DataSpec(LatentSpec((2, 2), 25, levels=(5, 5)), {"toy": ACTION})


def groups(kind: str, module: torch.nn.Module) -> dict[str, tuple[str, float]]:
    """Name of each weight -> (optimizer, weight decay)."""
    names = {p: n for n, p in module.named_parameters()}
    return {
        names[p]: (type(o).__name__, g["weight_decay"])
        for o in optimizers(module, kind, 0.1, 0.5, (0.9, 0.95))  # type: ignore[arg-type]
        for g in o.param_groups
        for p in g["params"]
    }


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("make", [lambda: Toy(Toy.Config(), SPEC), lambda: MaskedHWM.tiny().build(SPEC)])
def test_every_weight_is_trained_once(kind: str, make) -> None:
    module = make()
    held = [p for o in optimizers(module, kind, 0.1, 0.5, (0.9, 0.95)) for g in o.param_groups for p in g["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(module.parameters()))


def test_muon_trains_hidden_matrices_and_decay_spares_vectors() -> None:
    found = groups("muon", Toy(Toy.Config(), SPEC))
    assert found["hidden.weight"] == found["act.weight"] == ("Muon", 0.5)
    assert found["head.weight"] == found["conv.weight"] == ("AdamW", 0.5)
    assert found["embed.weight"] == ("AdamW", 0.0)
    assert found["head.bias"] == found["act.bias"] == ("AdamW", 0.0)
    assert {name for name, _ in groups("adamw", Toy(Toy.Config(), SPEC)).values()} == {"AdamW"}


def test_muon_trains_kernels_between_hidden_features_and_no_others() -> None:
    found = groups("muon", build("diffusion"))
    muons = {name for name, (kind, _) in found.items() if kind == "Muon"}
    assert {"unet.down.0.0.conv1.weight", "unet.middle.0.conv2.weight", "unet.middle.0.modulation.weight"} <= muons
    assert not muons & {"enter.weight", "enter_past.weight", "leave.weight", "read.arm.weight", "level.read.weight"}


def test_adafactor_trains_matrices_as_fast_as_adamw_and_keeps_next_to_nothing() -> None:
    torch.manual_seed(0)
    found = groups("adafactor", Toy(Toy.Config(), SPEC))
    assert found["hidden.weight"][0] == found["embed.weight"][0] == found["conv.weight"][0] == "Adafactor"
    assert found["head.bias"] == ("AdamW", 0.0)
    moved = {}
    for kind in ("adamw", "adafactor"):
        torch.manual_seed(0)
        layer = Wide()
        before, made = layer.weight.detach().clone(), optimizers(layer, kind, 1e-3, 0.0, (0.9, 0.95))
        for _ in range(3):
            torch.manual_seed(1)
            layer.weight.grad = torch.randn_like(layer.weight)
            for optimizer in made:
                for group in optimizer.param_groups:
                    group["lr"] = 1e-3 * group.get("lr_share", 1.0)
                optimizer.step()
        moved[kind] = (layer.weight - before).square().mean().sqrt().item()
    assert 0.3 < moved["adafactor"] / moved["adamw"] < 3
    state = made[-1].state[layer.weight]
    assert sum(v.numel() for v in state.values()) == sum(layer.weight.shape) + 1


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("name", FAMILIES)
def test_decay_pulls_at_matrices_and_at_no_table(name: str, kind: str) -> None:
    module = build(name)
    found = groups(kind, module)
    layers = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)}
    assert {n for n, (_, decay) in found.items() if decay} == layers
    tables = [n for n in found if "position" in n or ("embed" in n and n.endswith("weight") and n not in layers)]
    assert tables or name == "diffusion" or name.startswith("flow_hwm")  # which have neither ids nor learned places


ACTIONS = ("actions.read.arm", "actions.read.hand_v2", "actions.mix")
STEMS = tuple(f"trunk.stems.{e}.mix.{i}" for e in ("arm", "hand_v2") for i in (0, 3))
HEADS = tuple(f"action_heads.{e}.net.cond_embed" for e in ("arm", "hand_v2"))


@pytest.mark.parametrize(
    ("name", "changes", "outside", "slow"),
    [
        ("genie", {"actions": True}, (*ACTIONS, "head"), ACTIONS[2:]),
        ("genie", {"actions": False}, ("head",), ()),
        ("hma_discrete", {}, (*STEMS, "head"), STEMS[1::2]),
        ("hma_continuous", {}, (*STEMS, "embed", "out"), (*STEMS[1::2], "out", "head.cond_embed")),
        ("hma_continuous", {"action_loss": 1.0}, STEMS, (*STEMS[1::2], "out", "head.cond_embed", *HEADS)),
    ],
)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_mup_slows_what_reads_features_of_the_width(name, changes, outside, slow, kind) -> None:
    config = replace(REGISTRY[name].tiny(), dim=1024, depth=1, heads=8, **changes)
    spec = toy_spec(channels=4) if name == "hma_continuous" else toy_spec()
    with torch.device("meta"):
        module = config.build(spec)
    blocks = {n for n, m in module.named_modules() if isinstance(m, nn.Linear) and "blocks." in n}
    blocks = {n for n in blocks if "head" not in n}
    names = {p: n for n, p in module.named_parameters()}
    share = {
        names[p].removesuffix(".weight"): (g.get("lr_share", 1.0), g["weight_decay"])
        for o in optimizers(module, kind, 0.1, 0.5, (0.9, 0.95))
        for g in o.param_groups
        for p in g["params"]
        if names[p].endswith(".weight")
    }
    assert blocks
    assert set(outside) <= share.keys()
    fast = 1.0, 0.5
    assert {n for n, found in share.items() if found == (0.25, 2.0)} == {*slow, *(blocks if kind == "adamw" else ())}
    assert all(share[n] == fast for n in outside if n not in slow)


def test_frozen_weights_are_left_alone() -> None:
    module = Toy(Toy.Config(), SPEC)
    module.hidden.requires_grad_(False)
    module.conv.requires_grad_(False)
    for kind in ("adamw", "muon", "adafactor"):
        assert not [n for n in groups(kind, module) if n.startswith(("hidden", "conv"))]


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        ((), {"act.0", "act.2", "hidden", "embed"}),
        (("act.*",), {"act.0", "act.2"}),
        (("fresh",), {"act.2"}),
        (("fresh", "*.weight"), {"act.0", "act.2", "hidden", "embed"}),
        (("hidden.weight",), {"hidden"}),
    ],
)
def test_named_weights_alone_are_trained(patterns: tuple[str, ...], wanted: set[str]) -> None:
    module = Parts()
    train_only(module, patterns)
    assert {n.rpartition(".")[0] for n, p in module.named_parameters() if p.requires_grad} == wanted
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    made = optimizers(module, "adamw", 0.1, 0.0, (0.9, 0.95))
    for p in module.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    for optimizer in made:
        optimizer.step()
    moved = {n.rpartition(".")[0] for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert moved == wanted


class Parts(Trainable):
    fresh = ("act.2",)

    def __init__(self) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self.act = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        self.hidden, self.embed = nn.Linear(2, 2), nn.Embedding(4, 2)


class Wide(Trainable):
    def __init__(self) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self.weight = nn.Parameter(TYPICAL * torch.randn(40, 60))


def test_a_name_of_no_weight_is_refused() -> None:
    with pytest.raises(HwmError, match=r"no group of parameters to train called 'hiden\.\*'; did you mean hidden\.\*"):
        train_only(Parts(), ("act.*", "hiden.*"))
    with pytest.raises(HwmError, match=r"did you mean act\.2\.\* or act\.0\.\*"):
        train_only(Parts(), ("act.o.*",))


def test_a_model_of_hidden_matrices_alone() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    module.adamw_only, module.mup_width, module.units = (), 1.0, tuple  # type: ignore[assignment]
    made = optimizers(module, "muon", 0.1, 0.0, (0.9, 0.95))  # type: ignore[arg-type]
    assert [type(o).__name__ for o in made] == ["Muon"]


@pytest.mark.parametrize("shape", [(64, 64), (256, 32), (32, 512)])
def test_muon_updates_are_a_fifth_of_those_of_adamw_whatever_the_shape(shape: tuple[int, int]) -> None:
    sizes = {}
    for kind in ("adamw", "muon"):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(*shape, bias=False))
        module.adamw_only, module.mup_width, module.units = (), 1.0, tuple  # type: ignore[assignment]
        before = module[0].weight.detach().clone()
        made = optimizers(module, kind, 1e-2, 0.0, (0.9, 0.95))  # type: ignore[arg-type]
        module(torch.randn(1024, shape[0])).square().sum().backward()
        for o in made:
            o.step()
        sizes[kind] = (module[0].weight - before).square().mean().sqrt().item()
    assert sizes["muon"] / sizes["adamw"] == pytest.approx(0.2, rel=0.25)


def test_what_adamw_is_told() -> None:
    (made,) = optimizers(Toy(Toy.Config(), SPEC), "adamw", 0.1, 0.5, (0.7, 0.8))
    for group in made.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.7, 0.8), 1e-8)
        assert group["fused"], "several times faster"
    with torch.device("meta"):
        module = Toy(Toy.Config(), SPEC)
    assert not optimizers(module, "adamw", 0.1, 0.5, (0.7, 0.8))[0].param_groups[0]["fused"], "it has no such weights"


class LowRank(Trainable):
    """Names as those of low-rank updates are."""

    adamw_only, mup_hidden = ("head", "stem", "lifted"), ("lifted",)

    def __init__(self) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self.hidden, self.head, self.stem, self.lifted = (nn.Linear(3, 3) for _ in range(4))
        self.hidden.lora_A = nn.ModuleDict({"default": nn.Linear(3, 2, bias=False)})
        self.hidden.lora_B = nn.ModuleDict({"default": nn.Linear(2, 3, bias=False)})


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("width", [1.0, 4.0])
def test_the_rate_of_matrices_that_read_features_is_divided_by_the_width_and_their_decay_multiplied(
    kind: str, width: float
) -> None:
    module = LowRank()
    module.mup_width = width
    names = {p: n for n, p in module.named_parameters()}
    found = {
        names[p]: (g.get("lr_share", 1.0), g["weight_decay"])
        for o in optimizers(module, kind, 0.1, 0.5, (0.9, 0.95))
        if isinstance(o, torch.optim.AdamW)
        for g in o.param_groups
        for p in g["params"]
    }
    divided, plain, vector = (1 / width, 0.5 * width), (1.0, 0.5), (1.0, 0.0)
    wanted = {f"{n}.bias": vector for n in ("hidden", "head", "stem", "lifted")}
    wanted |= {"hidden.lora_A.default.weight": divided, "hidden.lora_B.default.weight": plain}
    if kind != "adafactor":
        wanted |= {"head.weight": plain, "stem.weight": plain, "lifted.weight": divided}
    if kind == "adamw":
        wanted |= {"hidden.weight": divided}
    assert {n: pytest.approx(v) for n, v in found.items()} == wanted


@given(
    st.integers(0, 3000),
    st.floats(1e-6, 1),
    st.integers(0, 100),
    st.integers(101, 2000),
    st.floats(0, 1),
)
def test_learning_rate_is_its_closed_form(step: int, peak: float, warmup: int, total: int, floor: float) -> None:
    rate = learning_rate(step, peak=peak, warmup=warmup, total=total, floor=floor)
    if step < warmup:
        want = peak * (step + 1) / warmup
    elif step >= total:
        want = peak * floor
    else:
        half = math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2  # cos^2 of half the angle
        want = peak * (floor + (1 - floor) * half)
    assert rate == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert 0 < rate <= peak * (1 + 1e-9) or floor == 0 or rate >= peak * floor * (1 - 1e-9)


def test_learning_rate_at_its_corners() -> None:
    rate = {s: learning_rate(s, peak=2.0, warmup=10, total=110, floor=0.1) for s in (0, 9, 10, 60, 110, 500)}
    assert rate[0] == pytest.approx(0.2)
    assert rate[9] == rate[10] == 2.0
    assert rate[60] == pytest.approx(2.0 * 0.55)
    assert rate[110] == rate[500] == pytest.approx(0.2)
    assert learning_rate(0, peak=1.0, warmup=0, total=1, floor=0.0) == 1.0


def test_the_average_is_the_recurrence() -> None:
    torch.manual_seed(0)
    module = Toy(Toy.Config(), SPEC)
    average, want = MovingAverage(module, 0.7), {k: v.clone() for k, v in module.state_dict().items()}
    for step in range(20):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p))
            module.norm.num_batches_tracked += 1
        average.update(module, step)
        decay = min(0.7, (1 + step) / (10 + step))
        for k, v in module.state_dict().items():
            want[k] = decay * want[k] + (1 - decay) * v if v.is_floating_point() else v.clone()
    for k, v in average.weights.items():
        assert torch.allclose(v, want[k], atol=1e-5), k
    assert int(average.weights["norm.num_batches_tracked"]) == 20
    assert average.weights["conv.weight"].is_contiguous(memory_format=torch.channels_last)


def test_an_average_goes_on_from_what_was_saved(tmp_path: Path) -> None:
    module = Toy(Toy.Config(), SPEC)
    average = MovingAverage(module, 0.9)
    saved = {k: (v + 1).contiguous() for k, v in average.weights.items()}
    save_model(tmp_path, module, saved)
    load_average(tmp_path, average.weights)
    assert all(torch.equal(average.weights[k], v) for k, v in saved.items())
    assert average.weights["conv.weight"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("clip", "after"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_gradients_are_scaled_down_to_the_clip(clip: float, after: float) -> None:
    module = torch.nn.Linear(2, 1, bias=False)
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    assert gradient_norm(module, clip).item() == pytest.approx(5.0)
    assert module.weight.grad.norm().item() == pytest.approx(after, rel=1e-4)
