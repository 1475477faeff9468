"""Whether bf16 costs accuracy: fresh networks of `quick` in bf16 and in float32, seed by seed.

    python -m benchmarks.precision [SEEDS]

Both start from the same weights and see the same batches. Two one-sided t tests
over seeds ask whether the mean difference of test accuracy lies within half a
percentage point.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from repro import profiles
from repro.analysis import tables
from repro.analysis.claims import SAME, Claim, Sample, p_values
from repro.analysis.stats import mean_estimate
from repro.questions.warm_start import warm_start
from repro.store.records import Store
from repro.study import FRESH
from repro.sweep import dispatch, plans, trainer

MARGIN = 0.5  # percentage points
FILE = Path(__file__).parent / "precision.json"


def accuracies(precision: str, seeds: int) -> np.ndarray:
    """Test accuracy of each seed in percent; what is recorded of it is not trained again."""
    chosen = profiles.profile("quick", seeds=seeds)
    cases = [case for case in warm_start(chosen) if case.condition == FRESH]
    store = Store(Path(os.environ.get("REPRO_RESULTS", "_build/results")) / f"precision-{precision}")
    outcome = dispatch.execute(plans.plan(c.run for c in cases), store, precision=precision)
    if not outcome.finished or outcome.failures:
        sys.exit(outcome.failures[0] if outcome.failures else "stopped; the same command goes on")
    table = tables.table(cases, store, chosen.window)
    return 100 * table.set_index("seed").test_accuracy.sort_index().to_numpy()


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    low, full = (accuracies(precision, seeds) for precision in ("bf16", "float32"))
    claim = Claim("bf16", "", "", "", effect=lambda results: None, direction=SAME, margin=MARGIN)
    difference = low - full
    error = difference.std(ddof=1) / len(difference) ** 0.5
    p, _ = p_values(claim, Sample(*np.array([[difference.mean()], [error], [seeds - 1]]), seeds))
    found = mean_estimate(low - full, level=0.90)  # the interval that lies within the margin where p < 0.05
    said = {
        "device": trainer.device_name(torch.device("cpu")),
        "float32, %": round(full.mean(), 2),
        "bf16, %": round(low.mean(), 2),
        "difference, points": str(found),
        "margin, points": MARGIN,
        "p": float(f"{p:.2g}"),
        "seeds": seeds,
        "versions": trainer.versions(),
    }
    FILE.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(said, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
