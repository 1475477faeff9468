"""The paper's claims, each with the contrast it makes, its test and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from repro.stats import Estimate, generalisation_gap, mean_estimate

ALPHA = 0.05  # chance of any false verdict on the whole scorecard, by Holm's method
FEWEST_SEEDS = 3
LESS, MORE, SAME = "less", "more", "same"


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper as a statement about one number per seed.

    The claim says that this number is `less` or `more` than zero in expectation,
    or the `same` as zero up to `margin`.
    """

    id: str
    words: str
    figure: str
    study: str
    effect: Callable[[pd.DataFrame], pd.Series]  # of `records.table`; one value per seed
    direction: str = LESS
    margin: float = 0.0
    unit: str = "points"


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim."""

    claim: Claim
    verdict: str  # reproduced, contradicted, inconclusive or not run
    effect: Estimate
    p: float  # of the claim's test, adjusted for all claims tested; NaN where there is none

    def __str__(self) -> str:
        return self.verdict

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


def gap(table: pd.DataFrame) -> pd.Series:
    """Generalisation gap of the warm start."""
    return generalisation_gap(table[table.condition.isin(("fresh", "warm start"))]).set_index("seed").gap


CLAIMS = (
    Claim(
        id="gap_exists",
        words="Networks pretrained on half of the data, then tuned on all, generalise worse than fresh ones.",
        figure="Figure 1",
        study="warm_start",
        effect=gap,
    ),
)


def of(study: str) -> list[Claim]:
    """The claims that a study decides."""
    return [claim for claim in CLAIMS if claim.study == study]


def p_values(claim: Claim, values: np.ndarray) -> tuple[float, float]:
    """Chance of such values were the claim's reverse true, and were the claim itself true.

    One-sided t tests over seeds; two of them, the larger counting, where the
    claim is that there is no difference.
    """

    def below(x: np.ndarray, bound: float) -> float:
        if np.ptp(x) == 0:  # no spread to test against
            return 0.0 if x[0] < bound else 1.0
        return float(stats.ttest_1samp(x, bound, alternative="less").pvalue)

    x, margin = (-values if claim.direction == MORE else values), claim.margin
    if claim.direction == SAME:
        inside = max(below(x, margin), below(-x, margin))
        outside = min(1.0, 2 * min(below(x, -margin), below(-x, -margin)))
        return inside, outside
    return below(x, 0.0), below(-x, 0.0)


def verdicts(tables: Mapping[str, pd.DataFrame], claims: Iterable[Claim] = CLAIMS) -> list[Verdict]:
    """A verdict on every claim, from the table of each study by its name."""
    claims = list(claims)
    effects = [_values(claim, tables.get(claim.study)) for claim in claims]
    tested = [i for i, x in enumerate(effects) if len(x) >= FEWEST_SEEDS]
    found = {i: p_values(claims[i], effects[i]) for i in tested}
    supports, refutes = (
        dict(zip(tested, holm([found[i][side] for i in tested]), strict=True)) for side in (0, 1)
    )
    result = []
    for i, (claim, values) in enumerate(zip(claims, effects, strict=True)):
        word = "inconclusive" if len(values) else "not run"
        if supports.get(i, 1) < ALPHA:
            word = "reproduced"
        elif refutes.get(i, 1) < ALPHA:
            word = "contradicted"
        result.append(Verdict(claim, word, mean_estimate(values), supports.get(i, np.nan)))
    return result


def _values(claim: Claim, table: pd.DataFrame | None) -> np.ndarray:
    return (
        np.asarray(claim.effect(table).dropna(), float) if table is not None and len(table) else np.empty(0)
    )


def holm(p: list[float]) -> np.ndarray:
    """P values adjusted for their number by Holm's step-down method."""
    order = np.argsort(p)
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
