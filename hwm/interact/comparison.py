"""What policies earned in a model and in the true simulator, and whether the two agree.

Shapes: P policies, N starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from rich.console import Group
from rich.text import Text

from hwm.evaluate.uncertainty import Estimate, estimate
from hwm.tables import Figures


@dataclass
class Comparison:
    """Returns of policies from the same starts.

    Attributes:
        world: name of the model.
        task, unit: what was scored.
        steps, seconds: length of an episode.
        seed: of the model and of random policies.
        policies, starts: names.
        episodes: of each start, the recording that it is from: standard errors are clustered by it.
        model: (P, N) returns.
        simulator: (P, N) returns, NaN where there are none.
        note: why the simulator has none, or nothing.
        device, dtype: that the model was run on, and in which number format; nothing where that is not known.
    """

    world: str
    task: str
    unit: str
    steps: int
    seconds: float
    seed: int
    policies: tuple[str, ...]
    starts: tuple[str, ...]
    episodes: tuple[str, ...]
    model: np.ndarray
    simulator: np.ndarray
    note: str = ""
    device: str = ""
    dtype: str = ""

    @property
    def known(self) -> np.ndarray:
        """(N,) which starts were also run in the simulator."""
        return np.isfinite(self.simulator).all(0)

    def mean(self, where: str) -> list[Estimate]:
        """For each policy its mean return in the `model` or the `simulator`, with its standard error.

        Over the starts that both know, where there are any, so that the two are means of the same."""
        return [self._estimate(row) for row in getattr(self, where)]

    def _estimate(self, returns_N: np.ndarray) -> Estimate:
        chosen = self.known if self.known.any() else np.ones(len(self.starts), bool)
        return estimate(returns_N[chosen], np.array(self.episodes)[chosen])

    def ranking(self, where: str) -> list[str]:
        """The policies, best first."""
        return [self.policies[i] for i in np.argsort([-found.mean for found in self.mean(where)], kind="stable")]

    def correlation(self, of: str = "pearson", means: bool = False) -> float | None:
        """Correlation of the returns in the model with those in the simulator: `pearson`, or of ranks, `spearman`.

        Over all (policy, start) pairs, or over the policies' `means`. None for fewer than three values, or equal ones.
        """
        if not self.known.any():
            return None
        one, other = self.model[:, self.known], self.simulator[:, self.known]
        if means:
            one, other = one.mean(1, keepdims=True), other.mean(1, keepdims=True)
        x, y = one.ravel(), other.ravel()
        if of == "spearman":
            x, y = ranks(x), ranks(y)
        if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return None
        return float(np.corrcoef(x, y)[0, 1])

    def rank_violation(self) -> float | None:
        """How much return is lost at most by believing the model, averaged over policies, in units of the task.

        The mean maximum rank violation of Li et al., Evaluating Real-World Robot Manipulation Policies in Simulation,
        2024: for each policy the largest true difference to a policy that the model ranks on the wrong side of it.
        """
        if not self.known.any():
            return None
        model, true = (np.array([found.mean for found in self.mean(where)]) for where in ("model", "simulator"))
        wrong = np.sign(model[:, None] - model) != np.sign(true[:, None] - true)
        return float((np.abs(true[:, None] - true) * wrong).max(1).mean())

    def pairs(self) -> list[dict[str, Any]]:
        """Every two policies: by how much the first is better, in the model and in the simulator, with standard errors;
        whether the simulator's difference is clear; whether the model's has the same sign."""
        out = []
        for i, j in combinations(range(len(self.policies)), 2):
            dreamt, true = (self._estimate(returns[i] - returns[j]) for returns in (self.model, self.simulator))
            out.append(
                {
                    "policies": [self.policies[i], self.policies[j]],
                    "model": _plain(dreamt.mean),
                    "model_stderr": _plain(dreamt.error),
                    "simulator": _plain(true.mean),
                    "simulator_stderr": _plain(true.error),
                    "clear": true.sure,
                    "agrees": bool(np.sign(dreamt.mean) == np.sign(true.mean)),
                }
            )
        return out if self.known.any() else []

    @property
    def rankings_agree(self) -> bool | None:
        """Whether the model ranks all policies as the simulator does; None without a simulator."""
        return self.ranking("model") == self.ranking("simulator") if self.known.any() else None

    def verdict(self) -> str:
        """The outcome in a sentence or two."""
        if self.rankings_agree is None:
            return f"Without returns of the simulator nothing can be said of the model's: {self.note}."
        pairs = self.pairs()
        clear = [p for p in pairs if p["clear"]]
        wrong = [" and ".join(p["policies"]) for p in pairs if not p["agrees"]]
        said = (
            "The model ranks the policies as the simulator does"
            if self.rankings_agree
            else f"The model does NOT rank the policies as the simulator does: it is wrong about {', '.join(wrong)}"
        )
        right = sum(p["agrees"] for p in clear)
        return (
            f"{said}. Of {len(pairs)} pairs of policies, {len(clear)} differ clearly in the simulator (95 % "
            f"confidence); the model has {right} of these the right way round."
        )

    def json(self) -> dict[str, Any]:
        """Everything as plain values."""
        returns: dict[str, dict[str, Any]] = {}
        for i, name in enumerate(self.policies):
            out = returns[name] = {}
            for where in ("model", "simulator"):
                found = self.mean(where)[i]
                out[where] = [_plain(float(x)) for x in getattr(self, where)[i]]
                out[f"{where}_mean"], out[f"{where}_stderr"] = _plain(found.mean), _plain(found.error)
        known = bool(self.known.any())
        return {
            "world": self.world,
            "task": self.task,
            "unit": self.unit,
            "steps": self.steps,
            "seconds": self.seconds,
            "seed": self.seed,
            "device": self.device,
            "dtype": self.dtype,
            "starts": list(self.starts),
            "episodes": len(set(self.episodes)),
            "starts_in_simulator": int(self.known.sum()),
            "policies": returns,
            "ranking_model": self.ranking("model"),
            "ranking_simulator": self.ranking("simulator") if known else None,
            "rankings_agree": self.rankings_agree,
            **{
                f"{of}{suffix}": _plain(self.correlation(of, means))
                for of in ("pearson", "spearman")
                for suffix, means in (("", False), ("_of_means", True))
            },
            "rank_violation": _plain(self.rank_violation()),
            "pairs": self.pairs(),
            "verdict": self.verdict(),
        }

    def table(self) -> Group:
        """For a terminal: the policies, best in the simulator first, and what follows."""
        known = bool(self.known.any())
        about = f"{self.world}, {self.task} ({self.unit}): {self.steps} steps ({self.seconds:g} s)"
        on = f", model on {self.device} in {self.dtype}" if self.device else ""
        headings = ("policy", "in the model", "rank", "in the simulator", "rank")
        table = Figures(*headings, title=f"{about} from {len(self.starts)} starts{on}")
        order = {where: self.ranking(where) for where in ("model", "simulator")}
        for name in order["simulator" if known else "model"]:
            i = self.policies.index(name)
            cells = []
            for where in ("model", "simulator"):
                found = self.mean(where)[i]
                shown = np.isfinite(found.mean)
                spread = "n/a" if found.known_error is None else f"{found.error:.3f}"
                cells += [
                    f"{found.mean:.3f} ± {spread}" if shown else "-",
                    str(order[where].index(name) + 1) if shown else "-",
                ]
            table.add(name, *cells)
        lines = [Text(self.verdict())]
        for of in ("pearson", "spearman"):
            each, means = (self.correlation(of, m) for m in (False, True))
            if each is not None:
                over = "" if means is None else f", over the policies' means {means:.3f}"
                lines.append(Text(f"{of.capitalize()} over (policy, start) pairs {each:.3f}{over}"))
        if known:
            lines.append(Text(f"Mean maximum rank violation {self.rank_violation():.3f} {self.unit}"))
        return Group(table, *lines)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _plain(value: float | None) -> float | None:
    """A number as JSON knows it: rounded, and None for what is not finite."""
    return round(value, 5) if value is not None and np.isfinite(value) else None
