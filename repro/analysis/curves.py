"""What learning curves say of a run: which epochs belong to its last stage, and how fast it learns."""

from __future__ import annotations

from collections.abc import Sequence

from repro.lazy import Lazy

pd = Lazy("pandas")
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)  # train accuracies whose epochs are compared, as in Figure 11


def in_last_stage(curves: pd.DataFrame, run: Sequence[str] = ("condition", "seed")) -> pd.Series:
    """Which epochs belong to the last stage of their run; runs are told apart by these columns."""
    return curves.stage == curves.groupby(list(run)).stage.transform("max")


def epochs_to_reach(curves: pd.DataFrame, level: float, factors: Sequence[str] = ()) -> pd.DataFrame:
    """Epochs of the last stage until each run reaches a train accuracy, in the column `epochs`.

    A row for each run, told apart by condition, seed and these factors. Linear
    between the first epoch at which it does and the one before; 1 where that is
    the first of all, NaN for a run that never does.
    """
    run, column = ["condition", "seed", *factors], "train_accuracy"
    last = curves[in_last_stage(curves, run)]
    before = last.groupby(run)[column].shift()
    beyond = ((last[column] - level) / (last[column] - before)).where(before < level, 0.0)
    reached = (last.epoch - beyond)[last[column] >= level].groupby([last[name] for name in run]).first()
    every = last.groupby(run).size().index
    return reached.reindex(every).rename("epochs").reset_index()
