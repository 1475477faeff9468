"""Does pretraining on half of the data hurt? (Figure 1)"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from repro.analysis.claims import SAME, Arms, claim, gap
from repro.analysis.recorded import Results
from repro.analysis.stats import mean_estimate
from repro.data.npz import Images
from repro.figures import common
from repro.figures.shown import Captioned, Words, captioned, contrast, listed, unrecorded
from repro.lazy import Lazy
from repro.scales import Profile
from repro.study import (
    CONTROL,
    FRESH,
    LONGER,
    WARM,
    Arm,
    Study,
    as_many_steps,
    crossed,
    pair,
    pretraining,
    tuning,
)

pd = Lazy("pandas")


@partial(crossed, first=True)
def warm_start(profile: Profile) -> Iterator[Arm]:
    """Fresh networks against networks pretrained on half of the data."""
    half = pretraining(profile)
    tuned = tuning(profile, epochs=profile.tuning_epochs)
    yield Arm(FRESH, (tuned,), priority=0)
    yield Arm(WARM, (half, tuned), priority=0)


@crossed
def budget(profile: Profile) -> Iterator[Arm]:
    """Warm starts against fresh networks trained for as many steps in total."""
    yield from pair(profile)
    if profile.controls:
        yield Arm(LONGER, (as_many_steps(profile),), priority=1)


@claim(
    "Warm starts also generalise worse than fresh networks trained for as many steps in total.",
    CONTROL,
    "budget",
    exploratory=("cifar10",),
)
def gap_as_many_steps(arm: Arms) -> pd.Series:
    return arm(WARM) - arm(LONGER)


@claim(
    "Both fit the training data equally well.", "Figure 1", "warm_start", "effect", direction=SAME, margin=1.0
)
def fits_equally(results: Results) -> pd.Series:
    by = results.table.pivot_table(index="seed", columns="condition", values="train_accuracy")
    return 100 * (by[WARM] - by[FRESH])


def found(results: Results) -> Words:
    """Mean accuracies of fresh networks and warm starts, and the gap, in words."""
    by = results.table.groupby("condition")[["test_accuracy", "train_accuracy"]].mean().mul(100).round(1)
    if not {FRESH, WARM} <= set(by.index):
        return Words(unrecorded(results))
    return Words(
        f"Fresh networks end at **{by.test_accuracy[FRESH]} %** test accuracy, warm starts at "
        f"**{by.test_accuracy[WARM]} %**. The generalisation gap is **{mean_estimate(results.gaps.gap)}** "
        f"percentage points, though both fit their training images: {by.train_accuracy[FRESH]} % and "
        f"{by.train_accuracy[WARM]} %."
    )


def objection(faster: Results) -> Words:
    """What weakens the finding: the comparison with both tuned at ten times the rate.

    `faster` has the results of the study `two_phases`.
    """
    pairs = ("warm start, 10x", "fresh, 10x"), ("warm start, 10x then 1x", "fresh, 10x then 1x")
    fast, back = (contrast(faster, *pair) for pair in pairs)
    if not fast.n:
        return Words(unrecorded(faster))
    if fast.low > 0:
        verdict = "is reversed, so it depends on the rate"
    else:
        verdict = "remains" if fast.high < 0 else "is not clear"
    return Words(
        "**First, a result that weakens the finding.** If both networks have ten times the paper's learning "
        f"rate in their last stage (tuning), the gap {verdict}: after {faster.profile.arms_tuned} epochs of "
        f"tuning, the warm start minus the fresh network is {fast} percentage points, and {back} if both "
        "return to the paper's rate halfway. (Pretraining was at the paper's rate, and the warm start has "
        f"these steps in addition. Profile `{faster.profile.name}`.)"
    )


def learning_curves(results: Results) -> Captioned | Words:
    """Train and test accuracy of both networks through all stages (Figure 1)."""
    drawn = common.learning_curves(results.curves, results.profile.window)
    caption = (
        "Learning curves of both stages, as in the paper's Figure 1: thin lines are single runs, thick "
        f"lines their mean. Test accuracy is averaged over the shaded last {results.profile.window} epochs."
    )
    alt = "Train and test accuracy against epochs, before and after the switch to all of the data. " + found(
        results
    )
    return captioned(drawn, results, "fig-learning-curves", caption, alt.replace("**", ""))


def gaps(results: Results) -> Captioned | Words:
    """The gap of every seed."""
    caption = (
        "Generalisation gap of every seed (dots), their mean (diamond) and its 95 % interval by Student's "
        "t (bar). Left of zero, pretraining hurt."
    )
    alt = f"Generalisation gap of each seed in percentage points: {listed(results.gaps, 'condition')}."
    return captioned(common.gap_strip(results.gaps), results, "fig-gap", caption, alt)


def digits(images: Images) -> Captioned:
    """The first training images of a data set."""
    caption = "The first training images, each with its class above it."
    return Captioned(common.pictures(images.x_train, images.y_train), "fig-digits", caption, caption)


STUDIES = (
    Study(
        "warm_start", "Does pretraining on half of the data hurt?", "Figure 1", "01_warm_start", warm_start
    ),
    Study("budget", "Is the gap due to the warm start's longer training?", CONTROL, "01_warm_start", budget),
)
THE_GAP = claim(
    "Networks pretrained on half of the data generalise worse than fresh ones.", "Figure 1", "warm_start"
)(gap)
CLAIMS = (THE_GAP, gap_as_many_steps, fits_equally)
