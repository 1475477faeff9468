"""The smallest effects that the planned seeds can find, computed before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from repro.analysis.claims import ALPHA, Arms, Claim, weights
from repro.analysis.recorded import Results
from repro.analysis.stats import noncentrality
from repro.figures.shown import Table
from repro.questions import CLAIMS, STUDIES
from repro.scales import PROFILES, Profile
from repro.study import FRESH, LAST, WARM, Case

# Standard deviation of a run's test accuracy, in points, after subtracting the means of its arm and its seed.
# Estimated from pilots and declared on 26 November 2026, before the records that the present rules decide.
SPREAD = {"cifar10-small": 0.7, "cifar10": 0.45, "cifar10-wide": 0.45, "paper": 0.3, "quick": 3.0}
WANTED = 0.9  # power
MOST_SEEDS = 12


def planned(
    claim: Claim,
    profile: Profile,
    seed: int = 0,
    draw: Callable[[np.random.Generator, Case], float] | None = None,
) -> Results:
    """Simulated results of the claim's whole study, in which no arm is better than another.

    A run's test accuracy is 50 %, plus an effect of its seed (standard deviation 10 points),
    plus `draw(generator, case)` in points: a standard normal, if none is given.
    """
    study, random = STUDIES[claim.study], np.random.default_rng(seed)
    draw = draw or (lambda random, case: random.standard_normal())
    cases = study.cases(profile)
    of_seed = {s: 10 * random.standard_normal() for s in sorted({case.seed for case in cases})}
    rows = [
        {
            "condition": case.condition,
            "seed": case.seed,
            **case.factors,
            "run_id": case.run.id,
            "train_accuracy": 1.0,
            "test_accuracy": 0.5 + (of_seed[case.seed] + draw(random, case)) / 100,
        }
        for case in cases
    ]
    return Results(study, profile, pd.DataFrame(rows), pd.DataFrame(), 0)


def detectable(claim: Claim, profile: Profile, spread: float) -> dict[int, float]:
    """For 2 to `MOST_SEEDS` seeds, the smallest effect found with power `WANTED`, in the claim's unit.

    The t test is one-sided, at Holm's first step (`ALPHA` over the number of claims). `spread` is as in
    `SPREAD`, pooled over the study's arms that are fresh, warm or of a priority before `LAST`, without
    held-out ones. Raises `KeyError` if the profile does not plan an arm of the claim.
    """
    size = np.square(weights(claim.contrast, Arms(planned(claim, profile)))).sum(0).max() ** 0.5
    cases = [c for c in STUDIES[claim.study].cases(profile) if not c.run.dataset.held_out]
    first = [c for c in cases if c.priority < LAST or c.condition in (FRESH, WARM)]
    between = len({(c.condition, *c.factors.items()) for c in first}) - 1
    return {
        n: noncentrality(between * (n - 1), ALPHA / len(CLAIMS), WANTED) * spread * size / n**0.5
        for n in range(2, MOST_SEEDS + 1)
    }


def table(profile: Profile) -> pd.DataFrame:
    """A row per claim on accuracies: `seeds` planned, effect `detectable`, `seeds_for_1.5` (seeds or NaN)."""
    rows = []
    for claim in CLAIMS:
        cases = STUDIES[claim.study].cases(profile)
        if claim.contrast is None or not cases:
            continue
        try:
            found = detectable(claim, profile, SPREAD[profile.name])
        except KeyError:  # this profile lacks an arm of the claim, or a `SPREAD`
            continue
        n = len({case.seed for case in cases})
        enough = [k for k, effect in found.items() if effect <= 1.5]
        row = {"claim": claim.id, "seeds": n, "detectable": found[n], "unit": claim.unit}
        rows.append(row | {"seeds_for_1.5": enough[0] if enough else np.nan})
    return pd.DataFrame(rows)


def shown() -> Table:
    """The book's table of the smallest effects that the planned seeds of two scales find, a row per claim."""
    rows, claims = {}, {claim.id: claim.words for claim in CLAIMS}
    for name in ("cifar10-small", "cifar10"):
        for found in table(PROFILES[name]).itertuples():
            said = f"{found.detectable:.2f} {found.unit} ({found.seeds} seeds)"
            words = claims[found.claim]
            rows.setdefault(words, {"claim": words})[f"smallest detectable effect, {name}"] = said
    return Table(pd.DataFrame(rows.values()).fillna(""))
