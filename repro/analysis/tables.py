"""Records as tables: one with a row for each run, and one of learning curves with a row for each epoch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from repro.lazy import Lazy
from repro.store.records import COPIED, CURVES, Store

pd = Lazy("pandas")  # as in `repro.analysis.stats`

COLUMNS = (  # of a table, besides factors and probes
    *("condition", "seed", "run_id", "test_accuracy", "train_accuracy", "epochs", "diverged"),
    *COPIED,
    "finished",
)


def table(cases: Iterable, store: Store, window: int, median: bool = False) -> pd.DataFrame:
    """One row per recorded case of a study: its condition, seed, factors and results.

    `test_accuracy` is the mean (or the median) over the last `window` epochs of the
    last stage and `train_accuracy` the value at its last epoch, both as fractions. If
    only the first epochs of a stage count (`Case.epochs`), later ones are ignored.
    """
    average = statistics.median if median else statistics.fmean
    cases = list(cases)
    found = store.load(case.run.id for case in cases)
    rows = []
    for case in cases:
        if record := found.get(case.run.id):
            last = {name: values[: case.epochs] for name, values in record["curves"][-1].items()}
            tail = last["test_accuracy"][-window:]
            # A run that diverged may have epochs without a test in its window; its last one has a test.
            tested = [v for v in tail if v is not None] if tail[-1] is not None else [math.nan]
            row = {"condition": case.condition, "seed": case.seed, **case.factors, "run_id": record["id"]}
            row |= {"test_accuracy": average(tested), "train_accuracy": last["train_accuracy"][-1]}
            row |= {"epochs": len(last["train_loss"]), "diverged": record["diverged"] is not None}
            row |= record.get("probes", {})
            row |= {key: record[key] for key in COPIED} | {"finished": record.get("finished", "")}
            rows.append(row)
    made = pd.DataFrame(rows, columns=None if rows else COLUMNS)
    factors = dict.fromkeys(name for case in cases for name in case.factors)
    return made.assign(**{name: math.nan for name in factors if name not in made})


def curves(cases: Iterable, store: Store) -> pd.DataFrame:
    """Learning curves of the recorded cases, one row per epoch.

    `stage` counts from 1 and `epoch` from 1 within the stage; `total` counts on
    through all stages. Epochs of the last stage that do not count (`Case.epochs`)
    are left out. Test accuracy is NaN after an epoch without a test.
    """
    cases = list(cases)
    found = store.load(case.run.id for case in cases)
    epochs = {name: [] for name in ("total", "epoch", *CURVES)}
    stages, lengths = [], []  # for each stage: columns with one value for all its epochs; their number
    for case in cases:
        done = 0
        for number, curve in enumerate(found.get(case.run.id, {"curves": ()})["curves"], start=1):
            n = len(curve[CURVES[0]])
            if number == len(case.run.stages):
                n = min(n, case.epochs or n)
            epochs["total"] += range(done + 1, done + n + 1)
            epochs["epoch"] += range(1, n + 1)
            for name in CURVES:
                epochs[name] += curve[name][:n]
            stages.append({"condition": case.condition, "seed": case.seed, "stage": number, **case.factors})
            lengths.append(n)
            done += n
    factors = dict.fromkeys(name for case in cases for name in case.factors)
    common = pd.DataFrame(stages, columns=["condition", "seed", "stage", *factors])
    made = pd.DataFrame(epochs).astype(dict.fromkeys(CURVES, float))
    return made.join(common.loc[common.index.repeat(lengths)].reset_index(drop=True))
