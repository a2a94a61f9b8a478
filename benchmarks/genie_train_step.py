"""One training step of GENIE-35M, forward and backward, against a straightforward implementation of the same model.

32 blocks x 256, batch 1, 16 frames of 256 tokens, float32, the same weights, ids, noise and masks for both. The
baseline is written as papers describe the model and as the released code runs it: attention with its scores written
out, a copy for every change of layout, logits and cross-entropy of all positions. Time is the median of the steps after
the first; memory is the peak of a process of its own, with everything that was loaded before the step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import in_fresh_process, parser, report
from torch import Tensor, nn

from hwm.convert import from_reference
from hwm.devices import peak_memory
from hwm.models.genie import Genie
from hwm.nn.layers import sparing
from hwm.types import Batch

# the fields of a published config; --quick has fewer blocks and cells
FIELDS = dict(num_layers=32, num_heads=8, d_model=256, T=16, S=256, image_vocab_size=2**18, num_factored_vocabs=2,
              factored_vocab_size=512, qk_norm=False, use_mup=False)  # fmt: skip
QUICK = dict(num_layers=2, num_heads=2, d_model=32, S=16)


class PlainAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over (N, L, D), with the scores of all pairs."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        N, L, D = x.shape
        q, k, v = self.qkv(x).reshape(N, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (D // self.heads) ** -0.5
        if causal:
            later = torch.ones(L, L, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.finfo(scores.dtype).max)
        out: Tensor = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(N, L, D))
        return out


class PlainMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.spatial_attn, self.temporal_attn = PlainAttention(dim, heads), PlainAttention(dim, heads)
        self.mlp = PlainMlp(dim)

    def forward(self, x_BTSD: Tensor) -> Tensor:
        B, T, S, D = x_BTSD.shape
        x = x_BTSD.reshape(B * T, S, D)
        x = x + self.spatial_attn(self.norm1(x), causal=False)
        x = x.reshape(B, T, S, D).transpose(1, 2).reshape(B * S, T, D)
        x = x + self.temporal_attn(x, causal=True)
        x = x + self.mlp(self.norm2(x))
        return x.reshape(B, S, T, D).transpose(1, 2)


class PlainGenie(nn.Module):
    """The published model, with the published names of weights, for ids of several factors of one size."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__()
        dim, self.size, self.count = fields["d_model"], fields["factored_vocab_size"], fields["num_factored_vocabs"]
        self.vocab = fields["image_vocab_size"]
        self.pos_embed_TSC = nn.Parameter(torch.zeros(1, fields["T"], fields["S"], dim))
        self.token_embed = nn.Module()
        self.token_embed.mask_token_embed = nn.Parameter(torch.zeros(1, dim))
        self.token_embed.factored_embeds = nn.ModuleList(nn.Embedding(self.size, dim) for _ in range(self.count))
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(PlainBlock(dim, fields["num_heads"]) for _ in range(fields["num_layers"]))
        self.out_x_proj = nn.Linear(dim, self.size * self.count)
        for p in self.parameters():
            nn.init.normal_(p, std=0.02) if p.ndim > 1 else None

    def forward(self, ids_BTS: Tensor) -> Tensor:
        """Ids, `vocab` where masked -> logits (B, T, S, V)."""
        digits = [ids_BTS // self.size**i % self.size for i in range(self.count)]
        parts = [table(d) for table, d in zip(self.token_embed.factored_embeds, digits, strict=True)]  # type: ignore[arg-type]
        masked = (ids_BTS == self.vocab)[..., None]
        x_BTSD = torch.where(masked, self.token_embed.mask_token_embed, torch.stack(parts).sum(0)) + self.pos_embed_TSC
        for layer in self.decoder.layers:  # type: ignore[union-attr]
            x_BTSD = layer(x_BTSD)
        logits: Tensor = self.out_x_proj(x_BTSD)
        return logits

    def loss(self, ids_BTS: Tensor, labels_BTS: Tensor) -> Tensor:
        """Mean cross-entropy of masked tokens of all frames but the first, in nats."""
        parts = self(ids_BTS)[:, 1:].permute(0, 3, 1, 2).split(self.size, 1)
        labels, masked = labels_BTS[:, 1:], (ids_BTS == self.vocab)[:, 1:]
        nll = sum(
            F.cross_entropy(part, labels // self.size**i % self.size, reduction="none") for i, part in enumerate(parts)
        )
        return (nll * masked).sum() / masked.sum()  # type: ignore[union-attr]


def clip(model: Genie, batch: Batch, seed: int) -> Tensor:
    """What `model.loss(batch)` shows the blocks under this seed: ids (B, T, S), `vocab` where masked."""
    torch.manual_seed(seed)
    past, shown, cells = model.corrupt_and_mask(model.tokens(batch.latents))
    return torch.cat([past, shown.masked_fill(cells.mask, model.vocab)], 1)


def measure(plain: bool, spare: bool, repeats: int, threads: int, dtype: str, quick: bool) -> dict[str, float]:
    """Median seconds of a forward and backward pass, seconds of all cores, peak bytes, and the last loss."""
    if threads:
        torch.set_num_threads(threads)
    fields: dict[str, Any] = FIELDS | (QUICK if quick else {})
    torch.manual_seed(0)
    baseline = PlainGenie(fields)
    ours: Genie = from_reference("genie", fields, baseline.state_dict()).train()  # the same tensors
    side = int(fields["S"] ** 0.5)
    batch = Batch(torch.randint(2**18, (1, fields["T"], side, side)), torch.zeros(1, fields["T"], 1, 1), "nobody")
    cpu, before, seconds, busy, value = torch.device("cpu"), peak_memory(torch.device("cpu")), [], [], 0.0
    for i in range(repeats + 1):
        start, busy_start = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"), sparing(spare):
            if plain:
                loss = baseline.loss(clip(ours, batch, i), ours.tokens(batch.latents))
            else:
                torch.manual_seed(i)
                loss = ours.loss(batch)[0]
        loss.backward()
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - busy_start)
        value = loss.item()
        (baseline if plain else ours).zero_grad(set_to_none=True)
    return {
        "seconds": statistics.median(seconds[1:]), "cpu_seconds": statistics.median(busy[1:]),
        "bytes": peak_memory(cpu), "bytes_before": before, "loss": value,
    }  # fmt: skip


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of our step's matrix products")
    p.add_argument("--spare", action="store_true", help="let our step compute again what it has room to keep")
    p.add_argument("--part", choices=["ours", "plain"], help="measure one part and print its JSON")
    a = p.parse_args()
    if a.part:
        found = measure(a.part == "plain", a.spare, a.repeats, a.threads, a.dtype, a.quick)
        print(json.dumps(found))
        return
    options = ["--repeats", str(a.repeats), "--threads", str(a.threads), *(["--quick"] if a.quick else [])]
    here, spare = str(Path(__file__)), ["--spare"] if a.spare else []
    ours = in_fresh_process(here, "--part", "ours", "--dtype", a.dtype, *spare, *options)
    plain = in_fresh_process(here, "--part", "plain", *options)
    if a.dtype == "float32" and abs(ours["loss"] - plain["loss"]) > 1e-4:
        raise SystemExit(f"the losses differ: {ours['loss']} and {plain['loss']}")
    report(
        a.json,
        ours=ours["seconds"],
        baseline=plain["seconds"],
        unit="seconds a training step",
        cpu_seconds_ours=ours["cpu_seconds"],
        cpu_seconds_baseline=plain["cpu_seconds"],
        memory_ours_mb=ours["bytes"] / 1e6,
        memory_baseline_mb=plain["bytes"] / 1e6,
        memory_ratio=plain["bytes"] / ours["bytes"],
        memory_before_step_mb=ours["bytes_before"] / 1e6,
        loss_ours=ours["loss"],
        loss_baseline=plain["loss"],
        dtype=a.dtype,
        spare=a.spare,
    )


if __name__ == "__main__":
    sys.exit(main())
