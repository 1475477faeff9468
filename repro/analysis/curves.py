"""What learning curves tell about runs: which epochs are of the last stage, and how fast a run learns."""

from __future__ import annotations

from collections.abc import Sequence

from repro.lazy import Lazy

pd = Lazy("pandas")
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)  # train accuracies: the epochs to reach them are compared (Figure 11)


def in_last_stage(curves: pd.DataFrame, run: Sequence[str] = ("condition", "seed")) -> pd.Series:
    """A mask of the rows that belong to the last stage of their run; the columns `run` identify a run."""
    return curves.stage == curves.groupby(list(run)).stage.transform("max")


def epochs_to_reach(curves: pd.DataFrame, level: float, factors: Sequence[str] = ()) -> pd.DataFrame:
    """Epochs of the last stage until each run reaches a train accuracy, in the column `epochs`.

    A row for each run, identified by condition, seed and these factors. The value is
    interpolated linearly between the first epoch at or above `level` and the one
    before; it is 1 if that is the first epoch, NaN for a run that never gets there.
    """
    run, column = ["condition", "seed", *factors], "train_accuracy"
    last = curves[in_last_stage(curves, run)]
    before = last.groupby(run)[column].shift()
    beyond = ((last[column] - level) / (last[column] - before)).where(before < level, 0.0)
    reached = (last.epoch - beyond)[last[column] >= level].groupby([last[name] for name in run]).first()
    every = last.groupby(run).size().index
    return reached.reindex(every).rename("epochs").reset_index()
