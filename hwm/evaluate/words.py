"""Figures in plain words, failures first-class: what a stranger should take away, and whether it is good news."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwm.evaluate.obey import MOTIONS, Obedience
from hwm.evaluate.results import ONE_EPISODE, Results, perplexity, quoted
from hwm.evaluate.uncertainty import Estimate

COPIES = {
    "copy": "the last camera frame repeated",
    "copy_reconstruction": "the reconstruction of the last frame repeated",
}


@dataclass(frozen=True)
class Finding:
    """One statement. `tone` is `good`, `bad` or `even`: neither, or too close to call."""

    tone: str
    text: str


def findings(results: Results, obedience: Obedience | None = None) -> list[Finding]:
    """What the figures say, the most telling first."""
    out = [_against_copies(results, moving=False)]
    moving = int(results.moving.sum())
    if moving == results.clips:
        out.append(Finding("even", "Every clip moves, so the figures for moving clips are those for all."))
    elif moving:
        out.append(_against_copies(results, moving=True))
    else:
        out.append(Finding("even", "No clip moves enough to tell prediction from standing still."))
    out += _actions(results)
    if obedience is not None:
        out += _obedience(obedience)
    out += _ceiling(results)
    out += _tokens(results)
    return out


def verdict(results: Results) -> Finding:
    """One sentence for the top of the page."""
    moving = bool(results.moving.any())
    picture = _tone(results, f"gain_{results.rival(moving)}", moving) or "even"
    of = "clips that move" if moving else "held-out clips"
    better = {
        "good": f"Better than repeating the last frame on {of}",
        "even": f"Not clearly better or worse than repeating the last frame on {of}",
        "bad": f"Worse than repeating the last frame on {of}",
    }[picture]
    listens = _tone(results, "delta_psnr", moving)
    if listens is None:
        return Finding(picture, f"{better}; whether it listens to its actions was not measured.")
    joined = {
        "good": "and it listens to its actions" if picture == "good" else "but it listens to its actions",
        "even": "and this test does not show that it listens to its actions",
        "bad": "and wrong actions do not hurt its predictions: it does not listen to them",
    }[listens]
    tone = "good" if (picture, listens) == ("good", "good") else "bad" if "bad" in (picture, listens) else "even"
    return Finding(tone, f"{better}, {joined}.")


def cautions(results: Results) -> list[str]:
    """What a reader must know in order not to make too much of the figures."""
    out = []
    if results.clips < 30:
        out.append(f"Only {results.clips} clips were evaluated; differences of a few tenths of a dB may be chance.")
    moving = int(results.moving.sum())
    if 0 < moving < 20:
        out.append(f"Only {moving} of the clips move, so the figures for moving clips are rough.")
    if results.reference != "camera":
        out.append(
            "The store has no camera video. Predictions are compared with the tokenizer's reconstruction of the "
            "recording, which flatters every PSNR here, the baselines' included."
        )
    distance = results.swap_distance.get("jump_free")
    if distance is not None and distance.mean() < 0.25:
        out.append(
            f"The jump-free swap changed the actions by only {distance.mean():.2f} standard deviations on average; "
            "delta-PSNR is small by construction when the actions hardly differ."
        )
    episodes = len(set(results.episodes))
    if episodes < 2:
        out.append(ONE_EPISODE)
    else:
        out.append(
            f"The clips are of {episodes} episodes, by which standard errors are clustered: what holds in these need "
            "not hold in others of another kind."
        )
    out.append(
        "PSNR rewards blur: a picture that is unsure everywhere can score above a sharp one that is a little off, so "
        "look at the videos too."
    )
    return out


def _tone(results: Results, name: str, moving: bool) -> str | None:
    found = results.overall(name, moving)
    if found is None:
        return None
    if not found.sure:
        return "even"
    return "good" if found.mean > 0 else "bad"


def _against_copies(results: Results, moving: bool) -> Finding:
    def value(name: str) -> float:
        found = results.overall(name, moving)
        assert found is not None
        return found.mean

    count = int(results.moving.sum())
    who = f"On the {count} clips that move" if moving else f"Over all {results.clips} clips"
    rival = results.rival(moving)
    other = "copy" if rival == "copy_reconstruction" else "copy_reconstruction"
    gain = results.overall(f"gain_{rival}", moving) or Estimate(0.0, math.nan, 0)
    tone = _tone(results, f"gain_{rival}", moving) or "even"
    text = (
        f"{who} the prediction scores {value('psnr'):.2f} dB on average over {_steps(results.horizon)}, "
        f"{_than(gain.mean, tone)} {COPIES[rival]}, the stronger baseline ({value(f'psnr_{rival}'):.2f} dB, difference "
        f"{gain.mean:+.2f}{_error(gain.error)}); the other, {COPIES[other]}, scores {value(f'psnr_{other}'):.2f} dB."
    )
    gains = results.mean(f"gain_{rival}", moving) or []
    behind = [t + 1 for t, g in enumerate(gains) if g < 0]
    if behind and len(behind) < len(gains):
        text += f" It is behind the stronger one at {_list_steps(behind)}."
    elif behind:
        text += " It is behind the stronger one at every step."
    wins = results.overall(f"win_rate_{rival}", moving)
    if wins is not None:
        text += f" It wins {wins.mean:.0%} of the comparisons."
    return Finding(tone, text)


def _actions(results: Results) -> list[Finding]:
    """What wrong actions cost; the sentence on moving clips leads, where the actions matter."""
    moving = bool(results.moving.any())
    found = results.overall("delta_psnr", moving)
    if found is None:
        return []
    who = "On moving clips, wrong" if moving else "Wrong"
    said = f"{who} actions that continue smoothly cost {found.mean:.2f}{_error(found.error)} dB of PSNR"
    if not found.sure:
        out = [Finding("even", f"{said}. That is within chance: it does not show that the model listens.")]
    elif found.mean > 0:
        out = [Finding("good", f"{said}: the model listens to what it is told.")]
    else:
        out = [Finding("bad", f"{said}: predictions are better with wrong actions, so something is amiss.")]
    loud = {
        "random": results.overall("delta_psnr_random", moving),
        "other": results.overall("delta_psnr_other_clip", moving),
    }
    parts = [
        f"{what} cost {pair.mean:.2f} dB"
        for what, pair in (("random actions", loud["random"]), ("another clip's actions", loud["other"]))
        if pair is not None
    ]
    if parts:
        text = f"{' and '.join(parts)}. Those commands jump where the future begins, which confuses any model"
        out.append(Finding("even", text[0].upper() + text[1:] + "; the smooth swap is the one that counts."))
    return out


def _obedience(obedience: Obedience) -> list[Finding]:
    names = {"shift": "Sideways", "expansion": "Towards and away"}
    out = []
    for motion in MOTIONS:
        response = obedience.response(motion)
        if response is None:
            continue
        share, error = response.mean, response.error
        verb = "turns" if motion == "shift" else "moves ahead"
        if not response.sure:
            tone, end = "even", f"that is within chance: it does not show that it {verb} when told to"
        elif share < 0:
            tone, end = "bad", "it moves the wrong way"
        elif share < 0.3:
            tone, end = "even", f"it {verb} when told to, but much too little"
        else:
            tone, end = "good", f"it {verb} when told to"
        spread = _error(error * 100, 0) if math.isfinite(error) else ""
        text = f"{names[motion]}, predicted pictures move {round(share * 100)}{spread} % as far as the camera's would"
        out.append(Finding(tone, f"{text}: {end}."))
    return out


def _ceiling(results: Results) -> list[Finding]:
    ceiling, copy = results.overall("psnr_reconstruction"), results.overall("psnr_copy_reconstruction")
    mine = results.overall("psnr")
    if results.reference != "camera" or ceiling is None or copy is None or mine is None or ceiling.mean > 50:
        return []  # a tokenizer that loses nothing sets no ceiling
    text = f"The tokenizer's own pictures score {ceiling.mean:.2f} dB, about the best that can be predicted through it"
    if ceiling.mean > copy.mean + 0.1:
        covered = (mine.mean - copy.mean) / (ceiling.mean - copy.mean)
        way = "Of the way from standing still to that ceiling the model has covered"
        text += f". {way} {covered:.0%}" if covered > 0 else f". {way} nothing"
    return [Finding("even", text + ".")]


def _tokens(results: Results) -> list[Finding]:
    entropy, hits, copy = results.overall("ce"), results.overall("accuracy"), results.overall("accuracy_copy")
    parts = []
    if entropy is not None:
        unsure = quoted("perplexity", perplexity(entropy.mean))
        parts.append(f"cross-entropy {entropy.mean:.2f} nats a token, a perplexity of {unsure}")
    if hits is not None and copy is not None:
        parts.append(f"{hits.mean:.1%} of tokens exactly right, where repeating the last step gets {copy.mean:.1%}")
    if not parts:
        return []
    text = "; ".join(parts)
    return [Finding("even", f"{text[0].upper()}{text[1:]}.")]


def _than(gain: float, tone: str) -> str:
    if tone == "even" or abs(gain) < 0.005:
        return "within chance of"
    return "better than" if gain > 0 else "worse than"


def _error(error: float, places: int = 2) -> str:
    return f" ± {error:.{places}f}" if math.isfinite(error) else ""


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _list_steps(steps: list[int]) -> str:
    """`step 1`, `steps 1 and 2`, `steps 3 to 8`."""
    if len(steps) == 1:
        return f"step {steps[0]}"
    if len(steps) > 2 and steps == list(range(steps[0], steps[-1] + 1)):
        return f"steps {steps[0]} to {steps[-1]}"
    return f"steps {', '.join(map(str, steps[:-1]))} and {steps[-1]}"
