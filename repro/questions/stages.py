"""Do more stages, or uneven classes, widen the gap? (Figure 4)"""

from __future__ import annotations

from collections.abc import Iterator

from repro.analysis.claims import Arms, claim, slope
from repro.analysis.curves import in_last_stage
from repro.analysis.recorded import Results
from repro.config import Stage, Subset
from repro.figures import style
from repro.figures.shown import Captioned, Words, captioned, listed
from repro.figures.style import GAP, GREY, blank, colour, known, line, marker, message, styled
from repro.lazy import Lazy
from repro.scales import Profile
from repro.study import FRESH, LAST, Arm, Study, crossed, tuning

pd = Lazy("pandas")

PARTS = (2, 3, 5, 10)  # numbers of portions with which the gap is said to grow
UNEVEN = (2, 5, 10)  # numbers of portions that are also dealt wholly by class


def staged(profile: Profile, parts: int, ratio: float) -> tuple[Stage, ...]:
    """Stages that each add one of `parts` portions of the data (paper, appendix A.3).

    A share `ratio` of images is dealt at random, the rest by class. All stages but the
    last end at a train accuracy of `profile.until`, or after `pretraining_epochs`.
    """
    most = profile.pretraining_epochs
    portions = (Subset(part, parts, ratio) for part in range(1, parts))
    before = (profile.stage(most, data, until=profile.until) for data in portions)
    return (*before, tuning(profile))


@crossed
def stages(profile: Profile) -> Iterator[Arm]:
    """Networks that get the data in portions, at random or by class, or at once."""
    splits = PARTS if profile.full_grids or profile.controls else PARTS[:3]
    ratios = (0.0, 0.25, 0.5, 0.75, 1.0) if profile.full_grids else (0.0, 0.5, 1.0)
    by_class = (5, 10) if profile.controls else ()
    yield Arm(FRESH, (tuning(profile),), {"parts": 1, "ratio": 1.0})
    pairs = [*((n, 1.0) for n in splits), *((2, r) for r in ratios), *((n, 0.0) for n in by_class)]
    for parts, ratio in dict.fromkeys(pairs):
        factors, first = {"parts": parts, "ratio": ratio}, ratio in (0.0, 1.0)
        yield Arm("stages", staged(profile, parts, ratio), factors, priority=4 if first else LAST)


@claim("The gap grows with the number of stages.", "Figure 4", "stages", unit="points per stage")
def grows_with_stages(arm: Arms) -> pd.Series:
    return slope([arm("stages", parts=n, ratio=1.0) for n in PARTS], PARTS)


@claim("The gap grows with the imbalance of classes.", "Figure 4", "stages", unit="points, uniform to pure")
def grows_with_imbalance(arm: Arms) -> pd.Series:
    by_class = (arm("stages", parts=n, ratio=0.0) - arm("stages", parts=n, ratio=1.0) for n in UNEVEN)
    return sum(by_class) / len(UNEVEN)


@styled
def stage_gaps(gap: pd.DataFrame) -> style.mpl.Figure:
    """Gap against the number of portions and, for two, against `ratio` (Figure 4)."""
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
    labels = "Number of portions", "Share r dealt at random\n(two portions, rest by class)"
    for ax, part, x, label in zip(axes, (gap, gap[gap.parts == 2]), ("parts", "ratio"), labels, strict=True):
        if part.empty:
            style.notice(ax)
            continue
        ax.axhline(0, color=GREY, lw=1)
        style.ticks(ax, part[x])
        ax.set_xlabel(label)
    axes[0].set_ylabel(GAP)
    style.legend(figure, axes[0])
    return figure


def found(results: Results) -> Words:
    """The gap by number of portions, dealt at random and by class, in words."""
    gaps = results.gaps
    at_random, by_class = (
        listed(gaps[(gaps.ratio == ratio) & (gaps.parts > 1)], "parts", "{} portions") for ratio in (1, 0)
    )
    two = listed(gaps[gaps.parts == 2], "ratio", "a share of {}")
    return Words(
        f"With all images dealt at random, the mean gap is {at_random}. With each class wholly in one "
        f"portion, it is {by_class}. With two portions, by the share of images dealt at random, it is {two}."
    )


def fitting(results: Results) -> Words:
    """How many stages before the last fitted their images within their epochs."""
    curves, until = results.curves, results.profile.until
    run = ["condition", "seed", "parts", "ratio"]
    early = curves[~in_last_stage(curves, run)]
    reached = early.groupby([*run, "stage"]).train_accuracy.max() >= until
    return Words(
        f"Of {len(reached)} stages before the last, {reached.sum()} reached {100 * until:g} % train "
        "accuracy within their limit of epochs; any that did not was followed by the next portion before its "
        "images were fitted."
    )


def gaps(results: Results) -> Captioned | Words:
    """Gap against the number of portions and the share dealt at random (Figure 4)."""
    caption = (
        "Generalisation gap against the number of portions, dealt at random or by class (left), and "
        "for two portions, against the share r dealt at random (right), as in the paper's Figure 4: "
        "dots are seeds, markers their mean, bars its 95 % interval."
    )
    return captioned(stage_gaps(results.gaps), results, "fig-stages", caption, found(results))


STUDIES = (
    Study("stages", "Do more stages, or uneven classes, widen the gap?", "Figure 4", "05_stages", stages),
)
CLAIMS = (grows_with_stages, grows_with_imbalance)
