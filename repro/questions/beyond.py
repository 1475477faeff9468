"""Which remedy costs least? (not in the paper)"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from repro.analysis.curves import epochs_to_reach
from repro.analysis.recorded import Results
from repro.figures import common, style
from repro.figures.shown import Captioned, Words, captioned, contrast, listed
from repro.figures.style import bar, blank, colour, estimate, known, marker, message, styled
from repro.lazy import Lazy
from repro.profiles import module_numbers
from repro.scales import Profile
from repro.study import Arm, Study, crossed, pair, pretraining, reset_condition, tuning

np, pd = Lazy("numpy"), Lazy("pandas")


@crossed
def beyond(profile: Profile) -> Iterator[Arm]:
    """Remedies for warm starts from elsewhere, and the paper's: resets, a larger rate.

    For comparison also the plain pair, and fresh networks at a falling rate.
    """
    half = pretraining(profile)
    larger, falling = profile.at_rate(10), profile.at_rate(10, schedule="cosine")
    yield from pair(profile)
    yield Arm("shrink and perturb", (half, tuning(profile, shrink=0.4, perturb=0.1)))
    yield Arm("rate restart", (half, tuning(profile, optimizer=falling)))
    yield Arm("fresh, falling rate", (tuning(profile, optimizer=falling),))
    modules = module_numbers(profile)
    for last in filter(None, dict.fromkeys((modules[-1:], modules[2:]))):
        yield Arm(reset_condition(last), (half, tuning(profile, reset=last)))
    yield Arm("warm start, 10x", (half, tuning(profile, optimizer=larger)))


@styled
def accuracy_against_cost(table: pd.DataFrame, curves: pd.DataFrame, level: float = 0.95) -> style.mpl.Figure:
    """Test accuracy against the epochs of tuning until train accuracy reaches `level`.

    Earlier stages, such as pretraining, are not counted. A hollow marker is the mean
    over the seeds that reached `level`, if not all did.
    """
    table = known(table, "test_accuracy")
    if table.empty or curves.empty:
        return message()
    costs = epochs_to_reach(curves, level).groupby("condition").epochs
    accuracy = (100 * table.test_accuracy).groupby(table.condition)
    points = [
        (name, estimate(costs.get_group(name).dropna()), estimate(values), costs.get_group(name).isna().any())
        for name, values in accuracy
        if name in costs.groups
    ]
    never = [name for name, x, _, _ in points if not x.n]
    points = sorted((point for point in points if point[1].n), key=lambda point: point[2].mean)
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
    notes = ["(hollow: not every seed reached it)"] if any(point[3] for point in points) else []
    notes += textwrap.wrap(f"Never reached by: {'; '.join(never)}", 60) if never else []
    ax.set_xlabel("\n".join([f"Epochs of tuning until {100 * level:g} % train accuracy", *notes]))
    ax.set_ylabel("Test accuracy, %")
    return figure


def found(results: Results) -> Words:
    """The difference between each remedy and fresh networks, in words."""
    return Words(
        "In percentage points, the mean difference from fresh networks at the base rate is "
        f"{listed(results.gaps, 'condition')}. Under the same falling rate, the rate restart minus a fresh "
        f"network is {contrast(results, 'rate restart', 'fresh, falling rate')}."
    )


def gaps(results: Results) -> Captioned | Words:
    """Test accuracy under each remedy, less that of fresh networks."""
    caption = (
        "Test accuracy with each remedy minus that of fresh networks at the base rate: every seed "
        "(dots), mean (diamond) and its 95 % interval (bar)."
    )
    drawn = common.gap_strip(results.gaps, xlabel=style.DIFFERENCE)
    return captioned(drawn, results, "fig-remedies", caption, found(results))


def cost(results: Results) -> Captioned | Words:
    """Test accuracy against what tuning costs, a point for each condition."""
    drawn = accuracy_against_cost(results.table, results.curves)
    caption = (
        "Test accuracy against the epochs of tuning until 95 % train accuracy, for each condition: means "
        "over seeds and 95 % intervals; pretraining is not counted."
    )
    return captioned(drawn, results, "fig-cost", caption, caption)


STUDIES = (Study("beyond", "Which remedy costs least?", "none", "09_beyond", beyond),)


CLAIMS = ()
