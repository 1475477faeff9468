"""Figures of the book: pure functions from tables of records to Matplotlib figures.

Each draws what there is, and says so where that is nothing. Intervals are 95 %
t intervals of the mean over seeds; one seed has none.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from repro import contributions as shares
from repro import plots
from repro.claims import MORE, SAME, Verdict
from repro.plots import COLOURS as COLOURS
from repro.plots import GAP, GREY, STYLE, bar, blank, colour, estimate, known, line, marker, message
from repro.scorecard import epochs_to_reach as first_epochs
from repro.scorecard import in_last_stage
from repro.stats import t_quantile
from repro.studies import FRESH, REPLACED, WARM, reset_condition
from repro.subsets import p_full


@mpl.rc_context(STYLE)
def learning_curves(curves: pd.DataFrame, window: int) -> Figure:
    """Train and test accuracy of all stages, a thin line per seed and a thick one for their mean.

    Epoch 0 is the start of the last stage; the window over which test accuracy
    is averaged is shaded. As the paper's Figure 1.
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
    plots.legend(figure, axes[1])
    return figure


@mpl.rc_context(STYLE)
def gap_strip(
    gap: pd.DataFrame,
    by: str = "condition",
    xlabel: str = "Generalisation gap, points\n(left of 0: pretraining hurt)",
) -> Figure:
    """Generalisation gap of each seed, with the mean of each condition (or factor) and its interval.

    Takes `Results.gaps`.
    """
    gap = known(gap, by, "gap")
    if gap.empty:
        return message()
    names = list(gap[by].unique())
    figure, ax = blank(height=1.3 + 0.7 * len(names))
    for y, name in enumerate(names):
        plots.strip(ax, y, gap[gap[by] == name].gap, colour(str(name)))
    plots.rows(ax, names)
    ax.axvline(0, color=GREY, lw=1)
    ax.set_xlabel(xlabel)
    return figure


@mpl.rc_context(STYLE)
def gap_lines(
    gap: pd.DataFrame, x: str, lines: str | None = None, xlabel: str = "", log: bool = False
) -> Figure:
    """Generalisation gap along a factor, a line for each value of another one.

    Takes `Results.gaps`. Warm starts without the factor make a dashed line and a
    band, for comparison.
    """
    rest = gap
    gap = known(gap, x, "gap", *([lines] if lines else []))
    if gap.empty:
        return message()
    figure, ax = blank(height=4.0)
    line_of = gap[lines or "condition"]
    names = list(line_of.unique())
    for i, (name, look) in enumerate(zip(names, plots.looks(names), strict=False)):
        part = gap[line_of == name]
        at = plots.spread(i, len(names), gap[x], log)[part.index]
        label = name if isinstance(name, str) else f"{lines} {name:g}"
        line(ax, part, x, "gap", *look, label, at=at)
    reference = rest[(rest.condition == WARM) & rest[x].isna()].gap.dropna()
    if len(reference):
        level = estimate(reference)
        ax.axhline(level.mean, color=colour(WARM), ls="--", label=WARM)
        if level.n > 1:
            ax.axhspan(level.low, level.high, color=colour(WARM), alpha=0.15, lw=0)
    ax.axhline(0, color=GREY, lw=1)
    plots.ticks(ax, gap[x], log)
    ax.set_xlabel(xlabel or x.replace("_", " ").capitalize())
    ax.set_ylabel(GAP)
    if len(names) > 1 or len(reference):
        plots.legend(figure, ax)
    return figure


def transition_gaps(gap: pd.DataFrame, to_control: pd.DataFrame) -> Figure:
    """Gap after smooth transitions to fresh networks and to those that draw with replacement (Figure 3)."""
    there = [gap.assign(to=np.where(gap.gamma.notna(), FRESH, None))]
    there += [to_control[to_control.condition == "smooth"].assign(to=REPLACED)] if len(to_control) else []
    both = pd.concat(there, ignore_index=True)
    return gap_lines(both, "gamma", "to", xlabel="γ (larger: smoother)")


@mpl.rc_context(STYLE)
def transition(gammas: Iterable[float], epochs: int) -> Figure:
    """Probability with which an example comes from all of the data, along the single stage (Figure 3)."""
    if not (gammas := sorted(gammas)):
        return message()
    figure, ax = blank()
    n = np.linspace(0, epochs, 501)
    ramp = plots.shades("#4FA98A", "#003D2C", len(gammas))
    for gamma, shade, symbol in zip(gammas, ramp, "^osDvPX<>", strict=False):
        p = p_full(n, epochs, gamma)
        ax.plot(n, p, color=shade, marker=symbol, markevery=0.08, mec="white", label=f"γ = {gamma:g}")
    ax.set_xlabel("Epochs of the only stage")
    ax.set_ylabel("Probability of drawing\nfrom all of the data")
    ax.legend(loc="lower right")
    return figure


@mpl.rc_context(STYLE)
def stage_gaps(gap: pd.DataFrame) -> Figure:
    """Gap against the number of portions, dealt at random or by class, and the share of two (Figure 4)."""
    gap = known(gap, "parts", "ratio", "gap")
    if gap.empty:
        return message()
    figure, axes = blank(1, 2, height=3.8, sharey=True)
    ways = {
        "at random": (gap[gap.ratio == 1], "stages"),
        "by class": (gap[gap.ratio == 0], "stages by class"),
    }
    for label, (part, look) in ways.items():
        if len(part):
            line(axes[0], part, "parts", "gap", colour(look), marker(look), label)
    line(axes[1], gap[gap.parts == 2], "ratio", "gap", colour("stages"), marker("stages"))
    labels = "Number of portions", "Share r dealt at random,\nthe rest by class, two portions"
    for ax, part, x, label in zip(axes, (gap, gap[gap.parts == 2]), ("parts", "ratio"), labels, strict=True):
        if part.empty:
            plots.notice(ax)
            continue
        ax.axhline(0, color=GREY, lw=1)
        plots.ticks(ax, part[x])
        ax.set_xlabel(label)
    axes[0].set_ylabel(GAP)
    plots.legend(figure, axes[0])
    return figure


@mpl.rc_context(STYLE)
def reset_gaps(gap: pd.DataFrame) -> Figure:
    """Gap after re-initialising the first k, the last k, and single modules (Figure 6).

    With none it is the warm start's; its mean is the dashed line beside single modules.
    """
    gap = known(gap, "modules", "gap")
    if gap.empty:
        return message()
    figure, axes = blank(1, 3, height=4.0, sharey=True)
    every, ks = "123456", range(7)
    panels = {
        "First k": {k: every[:k] for k in ks},
        "Last k": {k: every[6 - k :] for k in ks},
        "Only k": {k: every[k - 1] for k in ks if k},
    }
    for ax, (name, chosen) in zip(axes, panels.items(), strict=True):
        values = {k: gap[gap.modules == modules].gap for k, modules in chosen.items()}
        means = {k: estimate(v) for k, v in values.items() if len(v)}
        if name != "Only k":
            line = [means[k].mean if k in means else np.nan for k in ks]  # broken where one is not recorded
            ax.plot(ks, line, color="#b3b3b3", zorder=1)
        elif len(none := gap[gap.modules == ""]):
            ax.axhline(none.gap.mean(), color=colour(WARM), ls="--")
        for k, found in means.items():
            condition = reset_condition(tuple(map(int, chosen[k])))
            shade = colour(condition)
            ax.plot([k] * found.n, values[k], "o", color=shade, alpha=0.35, ms=4.5, mew=0)
            bar(ax, k, found, shade)
            ax.plot(k, found.mean, marker(condition), color=shade, ms=8, mec="white")
        ax.axhline(0, color=GREY, lw=1)
        ax.set_title(name, fontsize="medium")
        ax.set_xlim(-0.5 if name != "Only k" else 0.5, 6.5)
        ax.set_xticks(list(chosen))
        ax.grid(axis="x", visible=False)
    axes[0].set_ylabel(GAP)
    figure.supxlabel("Modules re-initialised (6: the last layer)", fontsize="medium")
    return figure


@mpl.rc_context(STYLE)
def contributions(gap: pd.DataFrame) -> Figure:
    """Main effect and Shapley value of re-initialising each module, in points (`repro.contributions`)."""
    gap = known(gap, "modules", "gap")
    accounts = {"main effect": shares.main_effects(gap), "Shapley value": shares.shapley(gap)}
    if accounts["main effect"].empty:
        return message(
            f"{shares.recorded(gap)} of the 64 subsets of modules are recorded.\n"
            "What each module contributes needs them all:\n"
            "run the study with `--set full_grids=true`."
        )
    figure, ax = blank(height=4.0)
    for (name, found), shade, hatch, side in zip(
        accounts.items(), ("#8C3A68", "#E3B5CF"), ("", "//"), (-0.2, 0.2), strict=True
    ):
        for module, part in found.groupby("module"):
            value = estimate(part.value)
            label = name if module == 1 else None
            ax.bar(module + side, value.mean, 0.38, color=shade, hatch=hatch, ec="white", label=label)
            bar(ax, module + side, value, "#1a1a1a", lw=1.5)
    ax.axhline(0, color=GREY, lw=1)
    ax.set_xlabel("Module re-initialised (1: first convolution, 6: last layer)")
    ax.set_ylabel("Contribution to the gap, points\n(above 0: resetting it helps)")
    ax.grid(axis="x", visible=False)
    plots.legend(figure, ax)
    return figure


@mpl.rc_context(STYLE)
def epochs_to_reach(
    curves: pd.DataFrame, conditions: Iterable[str], levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.99)
) -> Figure:
    """Epochs of the last stage until train accuracy first reaches each level (Figure 11).

    A hollow marker is the mean of those seeds that got there, where some did not.
    """
    if curves.empty:
        return message()
    conditions = [name for name in conditions if name in set(curves.condition)]
    curves = curves[curves.condition.isin(conditions)]
    if curves.empty:
        return message()
    found = pd.concat([first_epochs(curves, level).assign(level=i) for i, level in enumerate(levels)])
    found = found.reset_index(drop=True)
    if found.epochs.isna().all():
        return message(f"No run reached a train accuracy of {100 * min(levels):g} %")
    figure, ax = blank(height=4.4)
    hollow = False
    for i, condition in enumerate(conditions):
        part = found[found.condition == condition]
        at = plots.spread(i, len(conditions), found.level)[part.index]
        whole, look = part.dropna(), (colour(condition), marker(condition))
        if whole.empty:
            continue
        line(ax, whole, "level", "epochs", *look, condition, at=at[whole.index])
        some = whole[whole.level.isin(part[part.epochs.isna()].level)]
        means = some.groupby(at[some.index]).epochs.mean()
        if len(means):
            hollow = True
            ax.plot(means.index, means, look[1], mfc="white", mec=look[0], ms=8, mew=1.5)
    ax.set_xticks(range(len(levels)), [f"{100 * level:g}" for level in levels])
    ax.set_ylim(0)
    ax.yaxis.get_major_locator().set_params(integer=True)
    note = "\n(hollow: not every seed reached it)" if hollow else ""
    ax.set_xlabel("Train accuracy reached, %" + note)
    ax.set_ylabel("Epochs of tuning")
    plots.legend(figure, ax)
    return figure


NOISES = {"noise_trace": "all images", "noise_trace_old": "the old half", "noise_trace_new": "the new half"}
NOISE_BEFORE = {"gradient_noise": "noise over signal"}  # of records made before these


@mpl.rc_context(STYLE)
def noise(table: pd.DataFrame) -> Figure:
    """Gradient noise along tuning on logarithmic scales, a panel for each set of images: geometric means."""
    asked = NOISES if NOISES.keys() <= set(table.columns) else NOISE_BEFORE
    panels = [(c, label, known(table, "tuning_epochs", c)) for c, label in asked.items()]
    panels = [(c, label, part[part[c] > 0]) for c, label, part in panels if len(part)]
    if not panels:
        return message()
    figure, axes = blank(1, len(panels), height=3.9, sharey=True, squeeze=False)
    for ax, (column, label, part) in zip(axes[0], panels, strict=True):
        names = list(part.condition.unique())
        for i, (name, look) in enumerate(zip(names, plots.looks(names), strict=True)):
            runs = part[part.condition == name]
            at = plots.spread(i, len(names), part.tuning_epochs, log=True)[runs.index]
            line(ax, runs, "tuning_epochs", column, *look, name, at=at, log=True)
        plots.logarithmic(ax, "y")
        plots.ticks(ax, sorted(set(part.tuning_epochs))[::2], log=True)
        ax.set_title(label, fontsize="medium")
        ax.set_xlabel("Epochs of tuning")
    axes[0, 0].set_ylabel("Gradient noise")
    plots.legend(figure, axes[0, 0])
    return figure


@mpl.rc_context(STYLE)
def curvature(table: pd.DataFrame) -> Figure:
    """Sharpness against training loss along tuning, a line per seed, on logarithmic scales.

    Where lines lie on each other, networks are as sharp at the same loss.
    """
    table = known(table, "curvature", "curvature_loss")
    table = table[(table.curvature > 0) & (table.curvature_loss > 0)] if len(table) else table
    if table.empty:
        return message()
    figure, ax = blank(height=3.9)
    for (condition, seed), run in table.sort_values("tuning_epochs").groupby(["condition", "seed"]):
        label = condition if seed == table.seed.min() else None
        look = {"color": colour(condition), "marker": marker(condition)}
        ax.plot(run.curvature_loss, run.curvature, **look, alpha=0.7, lw=1.2, mec="white", label=label)
    plots.logarithmic(ax, "x")
    plots.logarithmic(ax, "y")
    ax.invert_xaxis()
    ax.set_xlabel("Mean training loss (training goes to the right)")
    ax.set_ylabel("Largest eigenvalue\nof the Hessian")
    plots.legend(figure, ax)
    return figure


@mpl.rc_context(STYLE)
def accuracy_against_cost(table: pd.DataFrame, curves: pd.DataFrame, level: float = 0.95) -> Figure:
    """Test accuracy against the epochs of the last stage until train accuracy reaches `level`.

    Pretraining is not in the cost, nor any stage but the last. A hollow marker
    is the mean of those seeds that got there, where some did not.
    """
    table = known(table, "test_accuracy")
    if table.empty or curves.empty:
        return message()
    costs = first_epochs(curves, level).groupby("condition").epochs
    accuracy = (100 * table.test_accuracy).groupby(table.condition)
    points = {
        name: (estimate(costs.get_group(name).dropna()), estimate(values), costs.get_group(name).isna().any())
        for name, values in accuracy
        if name in costs.groups
    }
    never = [name for name, (x, _, _) in points.items() if not x.n]
    points = sorted(
        ((name, *point) for name, point in points.items() if point[0].n), key=lambda point: point[2].mean
    )
    if not points:
        return message(f"No run reached a train accuracy of {100 * level:g} %")
    figure, ax = blank(height=max(4.6, 0.26 * len(points)))
    for place, (name, x, y, hollow) in zip(np.linspace(0, 1, len(points) + 2)[1:-1], points, strict=True):
        shade = colour(name)
        bar(ax, x.mean, y, shade)
        if x.n > 1:
            ax.plot([x.low, x.high], [y.mean] * 2, color=shade, solid_capstyle="butt")
        face = "white" if hollow else shade
        ax.plot(x.mean, y.mean, marker(name), mfc=face, mec=shade if hollow else "white", ms=11, mew=1.5)
        ax.annotate(
            name,
            (x.mean, y.mean),
            (1.04, place),
            textcoords="axes fraction",
            va="center",
            color=shade,
            arrowprops={"arrowstyle": "-", "color": shade, "lw": 0.8, "alpha": 0.5, "relpos": (0, 0.5)},
        )
    notes = ["(hollow: not every seed)"] if any(point[3] for point in points) else []
    notes += textwrap.wrap(f"Never reached by: {'; '.join(never)}", 60) if never else []
    ax.set_xlabel("\n".join([f"Epochs of tuning to {100 * level:g} % train accuracy", *notes]))
    ax.set_ylabel("Test accuracy, %")
    return figure


VERDICTS = {  # symbol, colour, marker
    "reproduced": ("✓", "#1B6E3C", "o"),
    "contradicted": ("✗", "#A3195B", "X"),
    "inconclusive": ("?", "#595959", "D"),
    "not tested": ("–", "#595959", ""),
    "exploratory": ("~", "#595959", "d"),
    "incomplete": ("…", "#595959", "d"),
    "not run": ("–", "#8A8A8A", ""),
}
FARTHEST = 100  # t value at which the axis ends


def t_value(verdict: Verdict) -> float:
    """The effect over its standard error, positive where it supports the claim; NaN without two seeds.

    Of a claim of no difference, how far the mean lies within the margin.
    """
    effect, claim = verdict.effect, verdict.claim
    if effect.n < 2:
        return np.nan
    inside = claim.margin - abs(effect.mean) if claim.direction == SAME else effect.mean
    towards = inside if claim.direction in (MORE, SAME) else -inside
    error = effect.sd / effect.n**0.5
    return towards / error if error else float(np.copysign(np.inf, towards)) if towards else 0.0


@mpl.rc_context(STYLE)
def scorecard(verdicts: Iterable[Verdict]) -> Figure:
    """A row per claim: its verdict, and how many standard errors the effect lies on the claim's side.

    A small upright mark is where one claim alone would be significant at 5 %
    with so many seeds; the verdict, corrected for all claims, asks for more.
    """
    verdicts = list(verdicts)
    if not verdicts:
        return message()
    words = [textwrap.fill(verdict.claim.words, 32) for verdict in verdicts]
    heights = np.array([0.3 + 0.2 * (text.count("\n") + 1) for text in words])
    y = np.cumsum(heights) - heights / 2
    figure, ax = blank(height=1.2 + heights.sum())
    for place, verdict in zip(y, verdicts, strict=True):
        symbol, shade, mark = VERDICTS[verdict.verdict]
        t = t_value(verdict)
        if not np.isnan(t):
            threshold = t_quantile(0.95, verdict.effect.n)
            ax.plot([threshold] * 2, [place - 0.14, place + 0.14], color=GREY, lw=1.5)
            shown = float(np.clip(t, -FARTHEST, FARTHEST))
            ax.plot([0, shown], [place] * 2, color=shade, lw=1.5)
            beyond = {FARTHEST: ">", -FARTHEST: "<"}.get(shown, mark)
            ax.plot(shown, place, beyond, color=shade, ms=9, mec="white", clip_on=False)
        ax.text(
            1.06,
            place,
            f"{symbol} {verdict.verdict}",
            transform=ax.get_yaxis_transform(),
            color=shade,
            va="center",
        )
    ax.set_yticks(y, words)
    for label, verdict in zip(ax.get_yticklabels(), verdicts, strict=True):
        label.set_color(VERDICTS["not run"][1] if verdict.verdict == "not run" else "#1a1a1a")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(heights.sum(), 0)
    ax.set_xscale("symlog", linthresh=3)
    ax.set_xlim(-FARTHEST, FARTHEST)
    plots.ticks(ax, (-30, -3, 0, 3, 30))
    ax.axvline(0, color=GREY, lw=1)
    ax.grid(axis="y", visible=False)
    figure.supxlabel(
        "t value: ← against the claim, for it →\nUpright mark: 5 % level for one claim alone",
        fontsize="medium",
    )
    return figure
