"""Figures of the book: pure functions from tables of records to Matplotlib figures.

One colour per condition everywhere (Okabe and Ito's palette, told apart with
every kind of colour vision), opaque ground so that they read in a dark theme,
lettering large enough for a phone.
"""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repro.stats import mean_estimate

COLOURS = {"fresh": "#0072B2", "warm start": "#D55E00"}
GREY = "#595959"
STYLE = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#1a1a1a",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 12,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "repro",
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def colour(condition: str) -> str:
    return COLOURS.get(condition, GREY)


def _figure(rows: int = 1, columns: int = 1, height: float = 3.6, **settings: object):
    figure = Figure(figsize=(7.2, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, **settings)


def learning_curves(curves: pd.DataFrame, window: int) -> Figure:
    """Train and test accuracy of both stages, a thin line per seed and a thick one for their mean.

    Epoch 0 is the start of the last stage; the window over which test accuracy
    is averaged is shaded. As the paper's Figure 1.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _figure(2, 1, height=2.9, sharex=True)
        last = curves.stage == curves.groupby(["condition", "seed"]).stage.transform("max")
        before = curves[~last].groupby(["condition", "seed"]).total.max()
        shift = curves.set_index(["condition", "seed"]).index.map(before).fillna(0)
        curves = curves.assign(x=curves.total - shift.to_numpy(), last=last)
        for ax, column, label in zip(
            axes, ("train_accuracy", "test_accuracy"), ("Train accuracy, %", "Test accuracy, %"), strict=True
        ):
            for (condition, _), part in curves.groupby(["condition", "last"], sort=False):
                for _, run in part.groupby("seed"):
                    ax.plot(run.x, 100 * run[column], color=colour(condition), alpha=0.25, lw=0.8)
                mean = 100 * part.groupby("x")[column].mean()
                name = condition if part["last"].all() else None
                ax.plot(mean.index, mean, color=colour(condition), label=name)
            ax.set_ylabel(label)
            ax.axvline(0, color=GREY, lw=1)
        end = curves.x.max()
        axes[1].axvspan(end - window, end, color="#f0e442", alpha=0.35, lw=0, label="averaged")
        axes[1].set_xlabel("Epochs of tuning (pretraining before 0)")
        axes[1].legend(loc="lower right")
    return figure


def gap_strip(gap: pd.DataFrame, by: str = "condition") -> Figure:
    """Generalisation gap of each seed, with the mean of each condition (or factor) and its 95 % interval.

    Takes `Results.gaps`.
    """
    with mpl.rc_context(STYLE):
        conditions = list(gap[by].unique())
        figure, ax = _figure(height=1.3 + 0.7 * len(conditions))
        for y, condition in enumerate(conditions):
            _strip(ax, y, gap[gap[by] == condition].gap, colour(condition))
        ax.set_yticks(range(len(conditions)), conditions)
        ax.set_ylim(len(conditions) - 0.4, -0.6)
        ax.axvline(0, color=GREY, lw=1)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("Generalisation gap, percentage points (left of 0: pretraining hurt)")
    return figure


def _strip(ax: Axes, y: float, values: pd.Series, shade: str) -> None:
    """A row of dots, one per seed, with mean and interval below them."""
    estimate = mean_estimate(values)
    ax.plot(values, [y - 0.12] * len(values), "o", color=shade, alpha=0.55, ms=7, mec="white")
    if estimate.n > 1:
        ax.plot([estimate.low, estimate.high], [y + 0.12] * 2, color=shade, lw=3, solid_capstyle="butt")
    ax.plot([estimate.mean], [y + 0.12], "D", color=shade, ms=8, mec="white")
