"""The verbs, on a tokenizer, a store and a model that are made here."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hwm import cli
from hwm.commands.rollouts import SHIPPED, RolloutOptions
from hwm.data.mixture import DataConfig
from hwm.data.readers import open_store
from hwm.errors import HwmError
from hwm.evaluate.camera import episode_of
from hwm.loading import load_tokenizer
from hwm.models.genie import Genie
from hwm.train.checkpoint import save_model
from tests.evaluate import pan_world
from tests.networks.test_lpips import formula_weights


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    tokenizer = pan_world.random_tokenizer(root / "tok")
    store = pan_world.record(root / "store", tokenizer, episodes=2, steps=10)
    save_model(root / "genie", replace(Genie.tiny(), past=3).build(store.data_spec()))
    torch.save(formula_weights(), root / "lpips.pth")
    return SimpleNamespace(model=str(root / "genie"), store=str(store.path), lpips=str(root / "lpips.pth"))


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    status = cli.main(list(args))
    out = capsys.readouterr()
    assert status == 0, out.err
    return out.out


def test_evaluate_writes_what_is_asked_for(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("r.json", "board.md", "report.html")]
    options = ["--clips", "4", "--horizon", "3", "--scenario", "temporally_teacher_forced", "autoregressive"]
    printed = run(
        capsys, "evaluate", made.model, "--data", made.store, *options, "--lpips-weights", made.lpips,
        "--out", str(files[0]), "--leaderboard", str(files[1]), "--report", str(files[2]),
    )  # fmt: skip
    assert printed.splitlines()[-3:] == [str(f) for f in files]
    assert "perplexity" in printed
    assert "LPIPS" in printed
    r = json.loads(files[0].read_text(encoding="utf-8"))
    assert r["checkpoint"] == made.model
    assert r["scenarios"] == ["temporally_teacher_forced", "autoregressive"]
    assert len(r["lpips"]) == len(r["lpips_copy"]) == len(r["lpips_reconstruction_reference"]) == 3
    assert min(r["lpips"]) > 0
    assert r["perplexity"] == pytest.approx(25, rel=0.3), "an untrained model of 25 tokens"
    assert files[1].read_text(encoding="utf-8").count(made.model) == 2
    assert "LPIPS" in files[2].read_text(encoding="utf-8")


def test_long_rollouts_are_judged_at_seconds(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--clips", "2", "--horizon", "1", "--no-swaps", "--long-clips", "2", "--seconds", "0.1", "0.5", "9"]
    report = tmp_path / "report.html"
    printed = run(
        capsys, "evaluate", made.model, "--data", made.store, *few, "--lpips-weights", made.lpips, "--report",
        str(report),
    )  # fmt: skip
    assert "long rollouts: 2 clips of 1 episode," in printed
    assert "9 s is left out: no clip goes on for so long" in printed
    assert "LPIPS" in printed[printed.index("long rollouts") :]
    assert "How long does the dream live?" in report.read_text(encoding="utf-8")
    assert cli.main(["evaluate", made.model, "--data", made.store, "--horizon", "1", "--seconds", "9"]) == 2
    assert "ask for other horizons" in capsys.readouterr().err


def test_the_shipped_model_outlives_a_copy_for_half_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--clips", "1", "--horizon", "1", "--no-swaps", "--long-clips", "4", "--seconds", "0.1", "0.5", "--json"]
    found = json.loads(run(capsys, "evaluate", *few))["endurance"]
    assert found["seconds"] == [0.1, 0.5]
    assert found["episodes"] == 4
    psnr, live = found["figures"]["psnr"], found["figures"]["liveliness"]
    assert all(mine > copy for mine, copy in zip(psnr["prediction"], psnr["copy"], strict=True))
    assert all(0.3 < share < 1.5 for share in live["prediction"])
    assert found["frozen"] == [False, False]


def test_what_no_simulator_can_judge_is_judged_without(made, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--clips", "2", "--horizon", "1", "--no-swaps", "--judge", "--judge-clips", "2"]
    printed = run(capsys, "evaluate", made.model, "--data", made.store, *few)
    assert "how often the true one of 2 plans" in printed
    assert "is no recording of the simulated humanoid" in " ".join(printed.split())
    found = json.loads(run(capsys, "evaluate", made.model, "--data", made.store, *few, "--json"))["judge"]
    assert found["drift"] is None
    assert found["which_plan"]["chance"] == 0.5


def test_further_stores_are_measured_alike(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("r.json", "board.md", "report.html", "report_store.html", "c.svg")]
    printed = run(
        capsys, "evaluate", made.model, "--data", made.store, "--also", made.store, "--clips", "2", "--horizon", "2",
        "--out", str(files[0]), "--leaderboard", str(files[1]), "--report", str(files[2]), "--controllability",
        str(files[4]),
    )  # fmt: skip
    assert printed.splitlines()[-5:] == [str(f) for f in files]
    assert "by robot, mean over 2 steps" in printed
    r = json.loads(files[0].read_text(encoding="utf-8"))
    assert r["by_robot"][0] == r["by_robot"][1]
    assert [s["store"] for s in r["stores"]] == ["store", "store"]
    assert files[4].read_text(encoding="utf-8").count('id="line-') == 4, (
        "under true and under random actions, of two robots"
    )


def test_the_model_is_named_in_either_way(made, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--clips", "2", "--horizon", "1", "--no-swaps", "--json"]
    one = json.loads(run(capsys, "evaluate", made.model, "--data", made.store, *few))
    other = json.loads(run(capsys, "evaluate", "--model", made.model, "--store", made.store, *few))
    changing = {"command", "date", "seconds_per_step", "seconds_per_frame", "by_scenario"}
    assert {k: v for k, v in one.items() if k not in changing} == {k: v for k, v in other.items() if k not in changing}
    assert "delta_psnr" not in one
    assert RolloutOptions().weights == SHIPPED
    with pytest.raises(HwmError, match="name one model"):
        _ = RolloutOptions(checkpoint="a", model="b").weights
    assert cli.main(["evaluate", made.model, "--model", "b"]) == 2


@pytest.mark.parametrize("name", ["--context", "--prompt"])
def test_context_frames_are_asked_for_under_either_name(made, capsys: pytest.CaptureFixture[str], name: str) -> None:
    few = ["--clips", "2", "--horizon", "1", "--no-swaps", "--json"]
    assert json.loads(run(capsys, "evaluate", made.model, "--data", made.store, *few, name, "2"))["prompt"] == 2


def test_a_masked_model_says_which_scenarios_it_has(made, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--scenario", "fully_teacher_forced", "--horizon", "1"]
    assert cli.main(["evaluate", made.model, "--data", made.store, *wrong]) == 2
    assert "its scenarios are autoregressive and temporally_teacher_forced" in capsys.readouterr().err


def test_lpips_without_its_weights(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["--lpips-weights", str(tmp_path / "nowhere.pth")]
    assert cli.main(["evaluate", made.model, "--data", made.store, *missing]) == 2
    assert "nowhere.pth cannot be read as weights" in capsys.readouterr().err


def test_generate_writes_pictures(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    printed = run(
        capsys, "generate", made.model, "--data", made.store, "--clips", "2", "--horizon", "4", "--out", str(out)
    )
    wanted = ["clip_0.gif", "clip_0.mp4", "clip_1.gif", "clip_1.mp4", "comic.png", "contact_sheet.png", "figures.json"]
    assert sorted(p.name for p in out.iterdir()) == wanted
    assert sorted(Path(line).name for line in printed.splitlines()) == wanted


def test_charts_that_cannot_be_drawn_are_refused_before_the_work(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for option in ("--report", "--controllability"):
        assert cli.main(["evaluate", str(tmp_path / "no-model"), option, str(tmp_path / "x")]) == 2
        assert "humanoid-world-models[eval]" in capsys.readouterr().err


def test_figures_are_of_episodes_that_training_does_not_see(made, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--clips", "4", "--horizon", "2", "--no-swaps", "--json"]
    store, seen = open_store(made.store), {}
    for split in ("test", "validation", "all"):
        clips = RolloutOptions(store=made.store, horizon=2, split=split).windows(store, 3)
        seen[split] = {episode_of(clips, i).id for i in range(len(clips))}
        r = json.loads(run(capsys, "evaluate", made.model, "--data", made.store, *few, "--split", split))
        assert (r["split"], r["episodes"]) == (split, len(seen[split]))
    validated = DataConfig(stores=(made.store,), val_stores=(made.store,), steps=3).open(validation=True).clips[0]
    validated_on = {episode_of(validated, i).id for i in range(len(validated))}
    assert validated_on == seen["validation"] == seen["all"] - seen["test"] == {"episode_0"}
    assert json.loads(run(capsys, "evaluate", made.model, "--data", made.store, *few))["split"] == "test"


def test_one_episode_is_for_validation(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(Path(made.model).parent / "tok")
    store = str(pan_world.record(tmp_path / "store", tokenizer, episodes=1, steps=8).path)
    assert cli.main(["evaluate", made.model, "--data", store, "--horizon", "2"]) == 2
    assert "has one episode, which is for validation, and none for test" in capsys.readouterr().err
    few = ["--clips", "2", "--horizon", "2", "--no-swaps", "--split", "all"]
    assert "standard errors are n/a" in run(capsys, "evaluate", made.model, "--data", store, *few)
