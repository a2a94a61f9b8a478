"""However many files the weights come in, loading them takes the memory of one copy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hwm.convert.cosmos_ar import Published, write
from hwm.models.cosmos_ar import CosmosAR

FIELDS = {"dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 4, "head_dim": 64, "ffn_hidden_size": 2048,
          "vocab_size": 4000, "video_latent_shape": (3, 4, 4)}  # fmt: skip
SHARDS = 4

MEASURE = """
import json, sys
import torch
import torch.nn.attention.bias  # whose import brings torch's compiler, 90 MB
from pathlib import Path
from hwm.convert.cosmos_ar import read
from hwm.train.checkpoint import load_model

def peak():  # not that of getrusage, which begins with the parent's
    status = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return int(status["VmHWM"].split()[0]) * 1024

torch.nn.Linear(8, 8)(torch.zeros(1, 8))
load = {"published": read, "ours": load_model}[sys.argv[1]]
before = peak()
model = load(Path(sys.argv[2]))
with torch.inference_mode():
    model.logits(torch.zeros(1, 20, dtype=torch.long), (3, 4, 4))
touched = sum(p.sum().item() for p in model.parameters())
print(json.dumps({"taken": peak() - before, "weights": sum(p.nbytes for p in model.parameters())}))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of 150 MB: in shards with an index, in one published file, and as ours."""
    from hwm.train.checkpoint import save_model

    root = tmp_path_factory.mktemp("weights")
    config = Published(**FIELDS)
    model: CosmosAR = config.config(torch.float32).build(config.spec())
    write(model, root / "one")
    save_model(root / "ours", model)
    (root / "shards").mkdir()
    (root / "shards" / "config.json").write_bytes((root / "one" / "config.json").read_bytes())
    state = model.state_dict()
    where = {name: f"model-{i % SHARDS + 1:05d}-of-{SHARDS:05d}.safetensors" for i, name in enumerate(state)}
    for file in set(where.values()):
        save_file({name: state[name] for name in where if where[name] == file}, root / "shards" / file)
    (root / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}), encoding="utf-8")
    return {name: root / name for name in ("shards", "one", "ours")}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of memory are counted otherwise elsewhere")
@pytest.mark.parametrize(("layout", "folder"), [("published", "shards"), ("published", "one"), ("ours", "ours")])
def test_loading_takes_one_copy_at_its_peak(folders: dict[str, Path], layout: str, folder: str) -> None:
    command = [sys.executable, "-c", MEASURE, layout, str(folders[folder])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["weights"] > 100 * 2**20
    # Some tens of megabytes come with any load, and differ by machine; a second copy would be twice.
    assert 0.9 < found["taken"] / found["weights"] < 1.5
