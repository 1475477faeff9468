"""How often whole scorecards hold a false verdict: `python -m benchmarks.verdicts [SCORECARDS]`.

Accuracies vary from run to run in the ways that `SHAPES` names. In all but the
last, no arm is better than another, so that every claim on accuracies is false
at its very boundary; there, networks with a past are worse by `GAP` points,
which makes some claims true, and leaves others at their boundary.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from repro import power, profiles
from repro.analysis.claims import ALPHA, LESS, Arms, Claim, verdicts
from repro.config import ALL
from repro.profiles import Profile
from repro.questions import CLAIMS
from repro.store.records import commit
from repro.study import Case

FILE = Path(__file__).parent / "verdicts.json"
GAP = 2.0  # in standard deviations of a run, as all that is drawn here


def normal(random: np.random.Generator, case: Case) -> float:
    return random.standard_normal()


def heavy_tails(random: np.random.Generator, case: Case) -> float:
    return random.standard_t(3)


def skewed(random: np.random.Generator, case: Case) -> float:
    return -random.standard_exponential()


def stumbling(random: np.random.Generator, case: Case) -> float:
    """A network in fifty is worse by ten standard deviations."""
    return random.standard_normal() - 10 * (random.random() < 0.02)


def one_unlike(random: np.random.Generator, case: Case) -> float:
    """One optimiser varies three times as much as the others."""
    return random.standard_normal() * (3 if case.factors.get("optimizer") == "SGD" else 1)


def deficit(random: np.random.Generator, case: Case) -> float:
    """By how much networks that were trained on a part of the data before are worse: nothing is random."""
    return -GAP * (case.run.stages[0].data != ALL)


def gap(random: np.random.Generator, case: Case) -> float:
    return random.standard_normal() + deficit(random, case)


SHAPES = (normal, heavy_tails, skewed, stumbling, one_unlike, gap)


def truth(claim: Claim, profile: Profile, shape: Callable) -> tuple[bool, bool]:
    """Whether a claim holds, in all its conditions, and whether its reverse does, in any of them."""
    if shape is not gap:
        return False, False
    results = power.planned(claim, profile, 0, deficit)
    effects = pd.DataFrame(claim.contrast(Arms(results))).mean().to_numpy()
    towards = -effects if claim.direction == LESS else effects
    return bool((towards > 1e-9).all()), bool((towards < -1e-9).any())


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    claims = [claim for claim in CLAIMS if claim.contrast is not None]
    one_each = {claim.study: claim for claim in claims}.values()
    undecided = [(claim, None) for claim in CLAIMS if claim.contrast is None]
    found = {"scorecards": trials, "claims": len(claims), "family": len(CLAIMS), "alpha": ALPHA}
    found["commit"] = commit()
    for name in ("cifar10-small", "cifar10"):
        profile = profiles.profile(name)
        for shape in SHAPES:
            true = {claim.id: truth(claim, profile, shape) for claim in claims}
            false, right = {"reproduced": 0, "contradicted": 0}, 0
            for seed in range(trials):
                made = {c.study: power.planned(c, profile, seed, shape) for c in one_each}
                results = [(c, made[c.study]) for c in claims]
                given = [(v.verdict, *true.get(v.claim.id, ())) for v in verdicts([*results, *undecided])]
                false["reproduced"] += any(v[0] == "reproduced" and not v[1] for v in given)
                false["contradicted"] += any(v[0] == "contradicted" and not v[2] for v in given)
                right += sum(v[0] == "reproduced" and v[1] for v in given)
            row = {word: round(n / trials, 4) for word, n in false.items()}
            if of := sum(holds for holds, _ in true.values()):
                row["true claims, of which reproduced"] = [of, round(right / of / trials, 4)]
            found[f"{name}, {shape.__name__.replace('_', ' ')}"] = row
            print(name, shape.__name__, row, flush=True)
    found["standard error at alpha"] = round((ALPHA * (1 - ALPHA) / trials) ** 0.5, 4)
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
