"""The smallest effects that the planned seeds can find, computed before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

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


def detectable(claim: Claim, profile: Profile, spread: float, seeds: int) -> float:
    """The smallest effect that this many seeds find with power `WANTED`, in the claim's unit.

    The t test is one-sided, at Holm's first step (`ALPHA` over the number of claims). `spread` is as in
    `SPREAD`, pooled over the study's arms that are fresh, warm or of a priority before `LAST`, without
    held-out ones. Raises `KeyError` if the profile does not plan an arm of the claim.
    """
    size = np.square(weights(claim.contrast, Arms(planned(claim, profile)))).sum(0).max() ** 0.5
    cases = [c for c in STUDIES[claim.study].cases(profile) if not c.run.dataset.held_out]
    first = [c for c in cases if c.priority < LAST or c.condition in (FRESH, WARM)]
    between = len({(c.condition, *c.factors.items()) for c in first}) - 1
    return noncentrality(between * (seeds - 1), ALPHA / len(CLAIMS), WANTED) * spread * size / seeds**0.5


def shown() -> Table:
    """The book's table of the smallest effects that the planned seeds of two scales find, a row per claim."""
    rows = {}
    for name, claim in product(("cifar10-small", "cifar10"), CLAIMS):
        seeds = len({case.seed for case in STUDIES[claim.study].cases(PROFILES[name])})
        if claim.contrast is None or not seeds:
            continue
        try:
            effect = detectable(claim, PROFILES[name], SPREAD[name], seeds)
        except KeyError:  # this profile lacks an arm of the claim
            continue
        said = f"{effect:.2f} {claim.unit} ({seeds} seeds)"
        rows.setdefault(claim.id, {"claim": claim.words})[f"smallest detectable effect, {name}"] = said
    return Table(pd.DataFrame(rows.values()).fillna(""))
