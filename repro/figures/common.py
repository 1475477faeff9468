"""Figures that several questions share: pure functions from tables of records to Matplotlib figures.

A figure shows a message if nothing is recorded. Intervals are 95 % t intervals of
the mean over seeds; a single seed has none.
"""

from __future__ import annotations

from repro.analysis.curves import in_last_stage
from repro.figures import style
from repro.figures.style import GAP, GREY, blank, colour, estimate, known, line, marker, message, styled
from repro.lazy import Lazy
from repro.study import WARM

np, pd = Lazy("numpy"), Lazy("pandas")


@styled
def learning_curves(curves: pd.DataFrame, window: int) -> style.mpl.Figure:
    """Train and test accuracy of all stages, a thin line per seed and a thick one for their mean.

    Epoch 0 is the start of the last stage; its last `window` epochs, over which
    test accuracy is averaged, are shaded. Like the paper's Figure 1.
    """
    if curves.empty:
        return message()
    figure, axes = blank(2, 1, height=3.1, sharex=True)
    last = in_last_stage(curves)
    before = curves[~last].groupby(["condition", "seed"]).total.max()
    shift = curves.set_index(["condition", "seed"]).index.map(before).fillna(0)
    curves = curves.assign(x=curves.total - shift.to_numpy(), last=last)
    for ax, column, label in zip(
        axes, ("train_accuracy", "test_accuracy"), ("Train accuracy, %", "Test accuracy, %"), strict=True
    ):
        for (condition, _), part in curves.groupby(["condition", "last"], sort=False):
            part = part.dropna(subset=column)  # epochs without a test
            for _, run in part.groupby("seed"):
                ax.plot(run.x, 100 * run[column], color=colour(condition), alpha=0.25, lw=0.8)
            mean = 100 * part.groupby("x")[column].mean()
            name = condition if part["last"].all() else None
            ax.plot(
                mean.index,
                mean,
                color=colour(condition),
                marker=marker(condition),
                markevery=0.12,
                mec="white",
                mew=0.7,
                label=name,
            )
        ax.set_ylabel(label)
        ax.axvline(0, color=GREY, lw=1)
    end = curves.x.max()
    axes[1].axvspan(end - window, end, color="#f0e442", alpha=0.35, lw=0, label="averaged")
    axes[1].set_xlabel("Epochs of tuning (pretraining before 0)")
    style.legend(figure, axes[1])
    return figure


@styled
def pictures(x: np.ndarray, y: np.ndarray, rows: int = 2, columns: int = 10) -> style.mpl.Figure:
    """The first `rows` x `columns` images of x [N, H, W, C] with their labels y [N]."""
    figure, axes = blank(rows, columns, height=0.85)
    for ax, image, label in zip(axes.flat, x, y, strict=False):
        ax.imshow(image.squeeze(), cmap="gray", interpolation="nearest")
        ax.set_title(str(label), fontsize="small", pad=2)
        ax.set_axis_off()
    return figure


@styled
def gap_strip(
    gap: pd.DataFrame,
    by: str = "condition",
    xlabel: str = "Generalisation gap, points\n(left of 0: pretraining hurt)",
) -> style.mpl.Figure:
    """Generalisation gap of each seed, with the mean of each condition (or factor) and its interval.

    `gap` is `Results.gaps`.
    """
    gap = known(gap, by, "gap")
    if gap.empty:
        return message()
    names = list(gap[by].unique())
    figure, ax = blank(height=1.3 + 0.7 * len(names))
    for y, name in enumerate(names):
        style.strip(ax, y, gap[gap[by] == name].gap, colour(str(name)))
    style.rows(ax, names)
    ax.axvline(0, color=GREY, lw=1)
    ax.set_xlabel(xlabel)
    return figure


@styled
def gap_lines(
    gap: pd.DataFrame, x: str, lines: str | None = None, xlabel: str = "", log: bool = False
) -> style.mpl.Figure:
    """Generalisation gap against the factor `x`, a line for each value of `lines` or else each condition.

    `gap` is `Results.gaps`. Warm starts that lack the factor are drawn for
    comparison: their mean as a dashed line, its interval as a band.
    """
    rest = gap
    gap = known(gap, x, "gap", *([lines] if lines else []))
    if gap.empty:
        return message()
    figure, ax = blank(height=4.0)
    line_of = gap[lines or "condition"]
    names = list(line_of.unique())
    for i, (name, look) in enumerate(zip(names, style.looks(names), strict=False)):
        part = gap[line_of == name]
        at = style.spread(i, len(names), gap[x], log)[part.index]
        label = name if isinstance(name, str) else f"{lines} {name:g}"
        line(ax, part, x, "gap", *look, label, at=at)
    reference = rest[(rest.condition == WARM) & rest[x].isna()].gap.dropna()
    if len(reference):
        level = estimate(reference)
        ax.axhline(level.mean, color=colour(WARM), ls="--", label=WARM)
        if level.n > 1:
            ax.axhspan(level.low, level.high, color=colour(WARM), alpha=0.15, lw=0)
    ax.axhline(0, color=GREY, lw=1)
    style.ticks(ax, gap[x], log)
    ax.set_xlabel(xlabel or x.replace("_", " ").capitalize())
    ax.set_ylabel(GAP)
    if len(names) > 1 or len(reference):
        style.legend(figure, ax)
    return figure
