"""Replays take the public path: which outputs of each family do, and on which actions, on cases of our own making."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hwm.config import replace
from hwm.convert.family import find_family
from hwm.convert.public import Inner, path_of, watched
from hwm.convert.recorded import Case, Tensors
from hwm.convert.replay import ReleasedSampler, training, unclamped
from hwm.models.genie import Genie
from hwm.tokenizers.cosmos import CosmosImage, CosmosVideo
from hwm.tokenizers.magvit2 import MAGVIT2
from hwm.types import Batch, DataSpec, LatentSpec
from tests.convert.test_hma import make
from tests.models.test_hma import shaken
from tests.models.toys import toy_batch, toy_spec

T, B = 5, 2


def case_of(given: dict[str, Tensor], **config: Any) -> Case:
    return Case("own", "", config, {}, Tensors(given, "in.* of own"), {}, {}, {}, {})


def hma(family: str, prompt: int = 2, repeats: int = 1) -> tuple[Any, Case]:
    """A model of two robots, and all that may be recorded of a clip of five steps."""
    torch.manual_seed(0)
    model = make(family, T=T, num_prompt_frames=prompt)
    actions = {f"actions.{e}": torch.randn(B, T, a.per_step * a.dim) for e, a in model.spec.actions.items()}
    if family == "hma-discrete":
        ids = torch.randint(64, (B, T, 16))
        hidden = torch.rand(B, T, 16) < 0.5
        hidden[:, 0] = False
        given = {
            "tokens": ids.flatten(1),
            "labels": ids.flatten(1),
            "masked_ids": ids.masked_fill(hidden, 64).flatten(1),
        }
        return model, case_of(given | actions)
    rows, width = B * T * 4, 12
    given = {
        "latents": torch.randn(B, T * 16, 3), "masked_tokens_indicator": (torch.rand(B, T, 4, 4) < 0.5).long(),
        "loss_t": torch.randint(1000, (rows,)).repeat(repeats), "head_x_t": torch.randn(6, width),
        "loss_noise": torch.randn(rows, width).repeat(repeats, 1), "head_t": torch.randint(1000, (6,)),
        "head_z": torch.randn(6, 16), "sampler_init_noise": torch.randn(6, width),
        "sampler_step_noise": torch.randn(3, 6, width), "frame_init_noise": torch.randn(B * 4, width),
        "frame_step_noise": torch.randn(3, B * 4, width),
    }  # fmt: skip
    return model, case_of(given | actions, diffusion_batch_mul=repeats)


def genie() -> tuple[Any, Case]:
    torch.manual_seed(0)
    model = shaken(replace(Genie.tiny(), {"actions": False}).build(toy_spec()))
    ids = torch.randint(60, (B, T, 16))
    hidden = torch.rand(B, T, 16) < 0.5
    hidden[:, 0] = False
    draws = {"unmask_rand_K4": torch.rand(3 * 3, B, 4, 4), "eval_unmask_rand_K2": torch.rand(4, B, 4, 4)}
    given = {"tokens": ids.flatten(1), "labels": ids.flatten(1), "masked_ids": ids.masked_fill(hidden, 60).flatten(1)}
    return model, case_of(given | draws)


def tokenizer(config: Any, given: dict[str, Tensor]) -> tuple[Any, Case]:
    torch.manual_seed(0)
    return config.build(DataSpec(LatentSpec((64, 64), channels=3), {})).eval(), case_of(given)


def paths(family: str, model: Any, case: Case) -> dict[str, str]:
    """By which path each output is computed."""
    found = {}
    for name, output in find_family(family).outputs(model, case).items():
        with torch.no_grad(), watched(type(model)) as called:
            output()
        found[name] = path_of(called, output)
    return found


def starting(found: dict[str, str], *beginnings: str) -> set[str]:
    """The paths of the outputs whose names begin so."""
    return {path for name, path in found.items() if name.startswith(beginnings)}


# ---------------------------------------------------------------------- which path
def test_generation_and_training_of_the_discrete_models_are_public() -> None:
    found = paths("hma-discrete", *hma("hma-discrete"))
    assert starting(found, "maskgit") == {"rollout"}
    assert starting(found, "loss", "acc") == {"loss"}
    assert starting(found, "logits") == {"inner: logits of a clip shown whole"}
    assert len(found) == 2 * 4 + 1
    found = paths("genie", *genie())
    assert starting(found, "maskgit") == {"rollout"}
    assert starting(found, "eval") == {"predict"}
    assert starting(found, "loss", "acc") == {"loss"}
    assert found["logits"] == "inner: logits of a clip shown whole"


def test_a_step_of_the_continuous_model_is_predicted() -> None:
    found = paths("hma-continuous", *hma("hma-continuous"))
    assert found.pop("frame_K1") == "predict"
    assert all(path.startswith("inner: ") for path in found.values()), "its masks are of cells, ours of patches"


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (CosmosVideo.tiny(), {"video9": torch.rand(1, 3, 9, 16, 32) * 2 - 1}),
        (replace(CosmosVideo.tiny(), {"levels": (), "channels": 4}), {"video9": torch.rand(1, 3, 9, 16, 32) * 2 - 1}),
        (CosmosImage.tiny(), {"image9": torch.rand(2, 3, 16, 32) * 2 - 1}),
    ],
)
def test_tokenizers_encode_and_decode(config: Any, given: dict[str, Tensor]) -> None:
    found = paths("cosmos-tokenizer", *tokenizer(config, given))
    assert starting(found, "codes", "indices") == {"encode"}
    assert found["latent9"] == ("inner: what is quantised" if config.levels else "encode")
    assert found["recon9"] == "encode, decode; inner: beyond black and white the decoder"


def test_magvit2_encodes_and_decodes() -> None:
    found = paths("magvit2", *tokenizer(MAGVIT2.tiny(), {"image": torch.rand(2, 3, 8, 12) * 2 - 1}))
    assert starting(found, "indices", "code") == {"encode"}
    assert found["recon"] == "encode, decode; inner: beyond black and white the decoder"


def test_methods_are_seen_from_outside_alone_and_put_back() -> None:
    model, _ = genie()
    before = {name: getattr(Genie, name) for name in ("predict", "rollout", "loss", "teacher_forced")}
    batch = toy_batch(model.spec, 4).window(0, 2, 4)
    with watched(Genie) as called:
        model.rollout(batch)  # which predicts, step by step
        model.check(batch)
    assert called == ["rollout"]
    with pytest.raises(RuntimeError), watched(Genie):
        raise RuntimeError
    assert {name: getattr(Genie, name) for name in before} == before
    assert "rollout" not in vars(Genie), "it is inherited, as before"
    assert path_of([], lambda: torch.ones(1)) == ""
    assert path_of(["encode"], Inner("more", lambda: torch.ones(1))) == "encode; inner: more"


# ---------------------------------------------------------------------- what they are conditioned on
@pytest.mark.parametrize("prompt", [1, 2, 3])
def test_generation_of_hma_is_told_the_recorded_actions_that_follow(prompt: int) -> None:
    """As in the released code: each step by itself, from all steps before it and the actions up to the one after."""
    model, case = hma("hma-discrete", prompt)
    outputs = find_family("hma-discrete").outputs(model, case)
    for robot, spec in model.spec.actions.items():
        actions = case.given[f"actions.{robot}"].unflatten(-1, (spec.per_step, spec.dim))
        ahead = torch.cat([torch.zeros_like(actions[:, :1]), actions], 1)
        ids = case.given["tokens"].unflatten(1, (T, 16))[:, :prompt]
        with torch.no_grad():
            for t in range(prompt, T):
                sampler = ReleasedSampler(steps=2, order="confidence")
                ids = torch.cat([ids, model.fill_in(ids, ahead[:, : t + 2], robot, 1, sampler)[0]], 1)
            made = outputs[f"maskgit_K2.{robot}"]()
        assert torch.equal(made, ids[:, prompt:].unflatten(-1, (4, 4)))


def test_the_frame_after_the_prompt_is_told_what_follows_it() -> None:
    found = {}
    for prompt in (1, 2, 4):
        model, case = hma("hma-continuous", prompt)
        frame = find_family("hma-continuous").outputs(model, case)["frame_K1"]
        found[prompt] = frame()
        assert torch.equal(frame(), found[prompt])
        for t in range(T):  # a released step t is given actions 0 to t: the last of them follow it
            changed = dict(case.given)
            changed["actions.arm"] = case.given["actions.arm"].clone()
            changed["actions.arm"][:, t] += 3
            other = find_family("hma-continuous").outputs(model, case_of(changed))["frame_K1"]()
            assert torch.equal(other, found[prompt]) == (t > prompt), (prompt, t)
    assert not torch.equal(found[1], found[2])


def test_the_head_is_trained_as_often_on_each_patch_as_the_config_says() -> None:
    outputs = find_family("hma-continuous").outputs
    once, twice = (
        {name: make() for name, make in outputs(*hma("hma-continuous", repeats=n)).items() if "diff" in name}
        for n in (1, 2)
    )
    for name, value in once.items():
        wanted = value.repeat(2) if value.ndim else value
        torch.testing.assert_close(twice[name], wanted)


def test_the_loss_is_that_of_recorded_masks() -> None:
    """The mean over masked cells of the cross-entropy that the whole model gives them."""
    model, case = genie()
    ids, shown = (case.given[name].unflatten(1, (T, 16)) for name in ("labels", "masked_ids"))
    clip = Batch(model.latents(ids), torch.zeros(B, T, 1, 1), "nobody")
    loss, accuracy = training(model, clip, shown)
    assert "corrupt_and_mask" not in vars(model)
    hidden = shown == 60
    window = model.observe(ids[:, :0], clip.actions, "nobody", T)
    logits = model.head(model.decoding_step(window, shown.masked_fill(hidden, 0), hidden))[hidden]
    digits = torch.stack([ids[hidden] % 3, ids[hidden] // 3 % 4, ids[hidden] // 12], -1)
    parts = logits.split((3, 4, 5), -1)
    by_hand = sum(torch.nn.functional.cross_entropy(p, digits[:, i]) for i, p in enumerate(parts))
    torch.testing.assert_close(loss, by_hand)
    right = torch.stack([p.argmax(-1) == digits[:, i] for i, p in enumerate(parts)]).all(0)
    torch.testing.assert_close(accuracy, right.float().mean())


def test_a_picture_is_as_it_is_shown_and_beyond_black_and_white_as_it_is_made() -> None:
    made = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
    assert torch.equal(unclamped(((made + 1) / 2).clamp(0, 1), made), made)
    wrong = torch.tensor([0.5, 0.0, 1.0, 0.3, 0.0])  # what is shown is not what was made
    assert (unclamped(wrong, made) - made).abs().min() > 0.4
