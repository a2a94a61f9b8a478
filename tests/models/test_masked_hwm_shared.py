import pytest
import torch

from hwm.errors import HwmError
from hwm.models.masked_hwm_shared import MaskedHWMShared
from hwm.types import ActionSpec, Batch, DataSpec, LatentSpec
from tests.models.toys import toy_batch, toy_spec

OPTIONS = [
    {},
    {"stream_embedding": True, "spatial_pool": True},
    {"clip_factors": 3, "past": 3, "horizon": 3},
    {"clip_factors": 3, "past": 6, "horizon": 3, "factorized": True},
]


def tiny(**kw) -> MaskedHWMShared:
    return MaskedHWMShared.Config(dim=32, depth=2, heads=2, shared_from=1, **kw).build(toy_spec())


def test_the_size_is_that_of_the_source():
    actions = ActionSpec(8, tuple(f"joint {i}" for i in range(25)), (0.0,) * 25, (1.0,) * 25)
    spec = DataSpec(LatentSpec((32, 32), vocab=65_536, stride=8), {"humanoid": actions})
    with torch.device("meta"):
        model = MaskedHWMShared.Config(past=3, horizon=3, clip_factors=3).build(spec)
    assert sum(p.numel() for p in model.parameters()) == 517_866_496


@pytest.mark.parametrize("kw", OPTIONS)
def test_prediction_has_the_shape_of_the_latents(kw):
    model = tiny(**kw).eval()
    past, total = model.config.past, model.config.past + model.config.horizon
    out = model.predict(toy_batch(model.spec, total).window(0, past, total), logits=True)
    assert out.latents.shape == (2, total - past, 4, 4)
    assert out.logits.shape[:4] == out.latents.shape
    parts = out.logits.split(out.levels, -1) if out.levels else (out.logits,)
    assert len(parts) == (3 if kw.get("factorized") else 1)
    assert 0 <= out.latents.min() <= out.latents.max() < 60


@pytest.mark.parametrize("kw", OPTIONS)
def test_every_action_matters_and_the_loss_falls(kw):
    model = tiny(**kw)
    batch = toy_batch(model.spec, model.config.past + model.config.horizon)
    batch.actions.requires_grad_()
    optimizer, losses = torch.optim.AdamW(model.parameters(), 5e-3), []
    for i in range(20):
        loss, _ = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if i == 0:
            assert (batch.actions.grad[..., :2].abs().sum((0, 2, 3)) > 0).all()
    assert losses[-1] < losses[0]


def test_the_factors_of_a_clip_are_masked_and_corrupted_together():
    model = tiny(clip_factors=3, past=3, horizon=3)
    latents = toy_batch(model.spec, 6).latents
    ids = model.tokens(latents)
    assert ids.shape == (2, 2, 16, 3)
    assert torch.equal(model.latents(ids), latents)
    _, shown, cells = model.corrupt_and_mask(ids)
    assert shown.shape == (2, 1, 16, 3)
    assert cells.mask.shape == (2, 1, 16)


def test_the_first_blocks_have_spatial_weights_of_their_own():
    model = tiny()
    own, shared = (set(block.space.attn) for block in model.blocks)
    assert own == {"past_video", "future_video"}
    assert shared == {"video"}
    assert all(len(block.mlp.mlp) == 4 for block in model.blocks)


def test_past_and_horizon_must_be_whole_clips():
    with pytest.raises(HwmError, match="multiples"):
        tiny(clip_factors=3, past=2, horizon=1)
    model = tiny(clip_factors=3, past=3, horizon=3)
    full = toy_batch(model.spec, 5)
    with pytest.raises(HwmError, match="multiples of 3"):
        model.predict(Batch(full.latents[:, :3], full.actions, "arm"))
