"""How often whole scorecards of nothing hold a false verdict: `python -m benchmarks.verdicts [SCORECARDS]`.

No arm is better than another, so every claim on accuracies is false at its very
boundary. Accuracies vary from run to run as a normal distribution, with heavy
tails, with a network in fifty that stumbles by ten standard deviations, and
with one optimiser that varies three times as much as the others.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from repro import power, profiles
from repro.analysis.claims import ALPHA, verdicts
from repro.questions import CLAIMS
from repro.store.records import commit

FILE = Path(__file__).parent / "results" / "verdicts.json"
DRAWS = {
    "normal": lambda random, case: random.standard_normal(),
    "heavy tails": lambda random, case: random.standard_t(3),
    "stumbling": lambda random, case: random.standard_normal() - 10 * (random.random() < 0.02),
    "one unlike": lambda random, case: (
        random.standard_normal() * (3 if case.factors.get("optimizer") == "SGD" else 1)
    ),
}


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    claims = [claim for claim in CLAIMS if claim.contrast is not None]
    found = {"scorecards": trials, "claims": len(claims), "family": len(CLAIMS), "alpha": ALPHA}
    found["commit"] = commit()
    for name in ("cifar10-small", "cifar10"):
        profile = profiles.profile(name)
        for shape, draw in DRAWS.items():
            false = {"reproduced": 0, "contradicted": 0}
            for seed in range(trials):
                results = {c.study: power.planned(c, profile, seed, draw) for c in claims}
                asked = [(c, results[c.study]) for c in claims]
                undecided = [(c, None) for c in CLAIMS if c.contrast is None]
                words = {v.verdict for v in verdicts([*asked, *undecided])}
                for word in false:
                    false[word] += word in words
            found[f"{name}, {shape}"] = {word: round(n / trials, 4) for word, n in false.items()}
            print(name, shape, found[f"{name}, {shape}"], flush=True)
    error = (ALPHA * (1 - ALPHA) / trials) ** 0.5
    found["standard error at alpha"] = round(float(np.round(error, 4)), 4)
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
