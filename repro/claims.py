"""What a claim is, how it is tested over seeds, and what verdict that gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from repro.stats import Estimate, mean_estimate, p_below
from repro.sweep import Results

ALPHA = 0.05  # chance of any false "reproduced" on a scorecard, and of any false "contradicted"
FEWEST_SEEDS = 3
SMALLEST_P = 0.0001  # that is told from nought
LESS, MORE, SAME = "less", "more", "same"


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper as a statement about one number per seed.

    The claim says that this number is `less` or `more` than zero in expectation,
    or the `same` as zero up to `margin`. Where the paper says it of several
    conditions, there is a column for each, and it has to hold in all of them.
    """

    id: str
    words: str
    figure: str
    study: str
    effect: Callable[[Results], pd.Series | pd.DataFrame]  # one row per seed
    direction: str = LESS
    margin: float = 0.0
    unit: str = "points"
    whole_seeds: bool = False  # of a study's every condition: only seeds count of which all runs are recorded


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim."""

    claim: Claim
    verdict: str  # reproduced, contradicted, inconclusive or not run
    effect: Estimate
    p: float  # of the test that gave the verdict, adjusted for all claims tested; NaN where there is none

    def __str__(self) -> str:
        """As in `reproduced: -9.8 (95 % interval -15.7 to -4.0, 8 seeds) points, p = 0.003`."""
        if not self.effect.n:
            return self.verdict
        p = self.p_text
        if p:
            p = f", p {p}" if p[0] == "<" else f", p = {p}"
        return f"{self.verdict}: {self.effect} {self.claim.unit}{p}"

    @property
    def p_text(self) -> str:
        """As in `0.003`; `< 0.0001` where it is smaller than that, empty where there is none."""
        if np.isnan(self.p):
            return ""
        return f"{self.p:.2g}" if self.p >= SMALLEST_P else f"< {SMALLEST_P:g}"

    def as_json(self) -> dict:
        numbers = {"effect": self.effect.mean, "interval": [self.effect.low, self.effect.high], "p": self.p}
        return {
            "id": self.claim.id,
            "claim": self.claim.words,
            "figure": self.claim.figure,
            "verdict": self.verdict,
            **{k: _finite(v) for k, v in numbers.items()},
            "unit": self.claim.unit,
            "n": self.effect.n,
        }


def _finite(value):
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return float(value) if np.isfinite(value) else None


def p_values(claim: Claim, values: np.ndarray) -> tuple[float, float]:
    """Chance of such values were the claim's reverse true, and were the claim true.

    One-sided t tests over seeds, in [seeds, conditions]; two of them, the larger
    counting, where the claim is that there is no difference. Over conditions the
    largest counts for the claim, and against it the smallest, times their number.
    """
    found = []
    for x in values.T:
        x = -x if claim.direction == MORE else x
        if claim.direction == SAME:
            inside = max(p_below(x, claim.margin), p_below(-x, claim.margin))
            outside = min(p_below(x, -claim.margin), p_below(-x, -claim.margin))
            found.append((inside, 2 * outside))
        else:
            found.append((p_below(x, 0.0), p_below(-x, 0.0)))
    supporting, opposing = zip(*found, strict=True)
    return max(supporting), min(1.0, len(found) * min(opposing))


def verdicts(results: Mapping[str, Results], claims: Iterable[Claim]) -> list[Verdict]:
    """A verdict on every claim, from the results of each study by its name."""
    claims = list(claims)
    effects = [_values(claim, results.get(claim.study)) for claim in claims]
    tested = [i for i, x in enumerate(effects) if len(x) >= FEWEST_SEEDS]
    found = {i: p_values(claims[i], effects[i]) for i in tested}
    supports, refutes = (
        dict(zip(tested, holm([found[i][side] for i in tested]), strict=True)) for side in (0, 1)
    )
    made = []
    for i, (claim, values) in enumerate(zip(claims, effects, strict=True)):
        word = "inconclusive" if len(values) else "not run"
        if supports.get(i, 1) < ALPHA:
            word = "reproduced"
        elif refutes.get(i, 1) < ALPHA:
            word = "contradicted"
        p = (refutes if word == "contradicted" else supports).get(i, np.nan)
        made.append(Verdict(claim, word, mean_estimate(_weakest(claim, values)), p))
    return made


def _values(claim: Claim, results: Results | None) -> np.ndarray:
    """The claim's numbers, [seeds, conditions]; none where what they need is not recorded."""
    if results is not None and claim.whole_seeds:
        results = results.whole_seeds
    try:
        found = pd.DataFrame(claim.effect(results)) if results is not None and len(results.table) else None
    except KeyError:  # a condition of which nothing is recorded
        found = None
    return np.empty((0, 1)) if found is None else found.dropna().to_numpy(float)


def _weakest(claim: Claim, values: np.ndarray) -> np.ndarray:
    """The condition that speaks least for the claim."""
    means = values.mean(0) if len(values) else np.zeros(values.shape[1])
    signed = {LESS: means, MORE: -means, SAME: np.abs(means)}[claim.direction]
    return values[:, int(np.argmax(signed))] if values.shape[1] else np.empty(0)


def holm(p: list[float]) -> np.ndarray:
    """P values adjusted for their number by Holm's step-down method."""
    order = np.argsort(p)
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
