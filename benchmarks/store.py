"""What a large store costs: `python -m benchmarks.store [RECORDS]`.

Fills a store of the profile `quick` with every run of its studies, recorded with
made-up curves, and with other seeds of the first study up to so many records.
Then it times what readers wait for: writing one record, `repro status`,
`repro claims`, and a chapter all of whose runs are recorded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np

from repro import profiles
from repro.book import execution
from repro.config import Run
from repro.questions import studies
from repro.questions.warm_start import warm_start
from repro.store.records import CURVES, ROOT, Store

PROFILE = "quick"
TURNS = 3
MEASURED = {  # by the probes that measure more than one number: their names in a record
    "curvature": ("curvature", "curvature_loss"),
    "noise": tuple(f"noise_{kind}{part}" for part in ("", "_old", "_new") for kind in ("trace", "signal")),
}


def write(store: Store, run: Run) -> None:
    """A record with curves that have the form of real ones."""
    random = np.random.default_rng(run.init_seed)
    curves = []
    for stage in run.stages:
        rising = 1 - 0.9 * np.exp(-np.arange(stage.epochs) / 5) * random.uniform(0.9, 1, stage.epochs)
        values = dict(zip(CURVES, (2.3 * (1 - rising), rising, 0.9 * rising), strict=True))
        curves.append({name: column.tolist() for name, column in values.items()})
    made = {"device": "none", "precision": "float32", "data": "0" * 16, "population": 1, "seconds": 1.0}
    probes = {name: float(random.uniform(1, 9)) for p in run.probes for name in MEASURED.get(p, (p,))}
    store.write(run, curves=curves, diverged=None, probes=probes, finished="", **made)


def seconds(call: Callable[[], object]) -> float:
    """The shortest of some turns."""
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def costs(records: int = 10_000) -> dict[str, float]:
    """What each thing costs with so many records in the store."""
    chosen = profiles.profile(PROFILE)
    runs = [case.run for study in studies() for case in study.cases(chosen)]
    runs += [case.run for case in warm_start(profiles.profile(PROFILE, seeds=records))]
    runs = list(dict.fromkeys(runs))[:records]
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, REPRO_RESULTS=folder):
        store = Store.of(PROFILE)
        start = time.perf_counter()
        for run in runs:
            write(store, run)
        each = (time.perf_counter() - start) / len(runs)

        def command(*arguments: str) -> Callable[[], object]:
            call = [sys.executable, "-m", "repro", *arguments, "--profile", PROFILE]
            return lambda: subprocess.run(call, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

        def chapter() -> None:
            [result] = execution.execute(
                execution.select(ROOT, ["reset"]), {"profile": PROFILE}, Path(folder) / "executed"
            )
            assert result.error is None, result.error

        found = {
            "records": len(runs),
            "write a record, ms": round(1000 * each, 2),
            "repro status, s": round(seconds(command("status")), 2),
            "repro claims, s": round(seconds(command("claims")), 2),
        }
        if find_spec("papermill"):  # training needs no packages of the book
            found["chapter 7, s"] = round(seconds(chapter), 2)
        return found


if __name__ == "__main__":
    print(json.dumps(costs(*map(int, sys.argv[1:])), indent=1))
