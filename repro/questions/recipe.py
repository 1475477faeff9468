"""Does the gap survive data augmentation and weight decay? (not in the paper)"""

from __future__ import annotations

from collections.abc import Iterator

from repro.analysis.recorded import Results
from repro.analysis.stats import mean_estimate
from repro.data import datasets
from repro.figures import common
from repro.figures.shown import Captioned, Table, Words, captioned, enumerated, listed, unrecorded
from repro.lazy import Lazy
from repro.scales import Profile
from repro.study import FRESH, LONGER, WARM, Arm, Study, as_many_steps, crossed, own_rate_factors, pair

pd = Lazy("pandas")

# Share by which a step at the base rate shrinks weights. It is rate * decay, so decay
# is SHRINKING / base rate: the usual 0.1 for Adam at 0.001, and 5e-4 for SGD at 0.2.
SHRINKING = 1e-4
MIRRORED = ("cifar10", "cifar100")  # whose images keep their class if mirrored
VARIANTS = {  # of the usual recipe: (whether images are augmented, whether weights decay)
    "neither": (False, False),
    "augmentation": (True, False),
    "weight decay": (False, True),
    "both": (True, True),
}


def augmentation(profile: Profile) -> dict[str, object]:
    """Usual shifts by up to 1/8 of the side, and mirroring if that keeps the class."""
    side = datasets.shape(profile.data())[0]
    return {"shift": max(1, side // 8), "flip": profile.dataset in MIRRORED}


@crossed
def recipe(profile: Profile) -> Iterator[Arm]:
    """Both networks with parts of the recipe: data augmentation and weight decay.

    They hold in all stages, as does `rate`, a factor on the base learning rate. All
    rates are trained; `at_own_rates` later picks each arm's best on held-out images.
    Augmented images are not fitted within a stage, so a warm start may gain by its
    extra steps: a second control is a fresh network that has as many steps in total.
    """
    decay = SHRINKING / profile.optimizer.learning_rate
    for name, (augmented, decayed) in VARIANTS.items() if profile.controls else ():
        moved = augmentation(profile) if augmented else {}
        for k in own_rate_factors(profile):
            settings = {"optimizer": profile.at_rate(k, weight_decay=decay if decayed else 0.0), **moved}
            longer = as_many_steps(profile, **settings)
            for held_out in (False, True):
                factors = {"recipe": name, "rate": k, "held_out": held_out}
                yield from pair(profile, factors, held_out=held_out, **settings)
                yield Arm(LONGER, (longer,), factors, held_out=held_out)


def at_own_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The runs, scored on test images, at the best rate of their recipe and condition.

    The best has the highest mean accuracy on held-out training images. Warm starts
    have a `gap` to fresh networks, and a `gap_longer` to those with as many steps in
    total, each at its own rate, in points; NaN if the other run is not recorded.
    """
    held_out = table.held_out.astype(bool)
    arm = ["recipe", "condition"]
    means = table[held_out].groupby([*arm, "rate"], as_index=False).test_accuracy.mean().dropna()
    best = means.loc[means.groupby(arm).test_accuracy.idxmax(), [*arm, "rate"]]
    found = table[~held_out].merge(best)
    at = found.pivot_table(index=["recipe", "seed"], columns="condition", values="test_accuracy")
    at = at.reindex(columns=[FRESH, LONGER, WARM])
    gaps = pd.DataFrame({"gap": at[WARM] - at[FRESH], "gap_longer": at[WARM] - at[LONGER]}) * 100
    gaps = gaps.reset_index().assign(condition=WARM)
    return found.merge(gaps, "left", ["recipe", "seed", "condition"])


def answered(results: Results) -> bool:
    """Whether all held-out runs are recorded, and all runs at the rates that these choose."""
    if results.table.empty:
        return False
    cases = results.study.cases(results.profile)
    arms = {(case.factors["recipe"], case.condition, case.seed) for case in cases}
    held_out = sum(case.factors["held_out"] for case in cases)
    return results.table.held_out.sum() == held_out and len(at_own_rates(results.table)) == len(arms)


def found(results: Results) -> Words:
    """The gap of warm starts to fresh networks of as many steps in total, by variant."""
    if not answered(results):
        return Words(unrecorded(results))
    warm = at_own_rates(results.table).query("condition == @WARM")
    said = [f"{mean_estimate(warm[warm.recipe == name].gap_longer)} with {name}" for name in VARIANTS]
    return Words(
        "With each kind of network at its own best rate, the mean gap in percentage points to fresh networks "
        f"trained for as many steps in total is {enumerated(said)}."
    )


def gaps(results: Results) -> Captioned | Words:
    """The gap with each part of the recipe."""
    if not results.planned_seeds:
        return Words(f"The profile `{results.profile.name}` has no runs with the usual recipe.")
    if not answered(results):
        return Words(unrecorded(results))
    warm = at_own_rates(results.table).query("condition == @WARM")
    steps = warm.assign(gap=warm.gap_longer, recipe=warm.recipe + ", as many steps")
    pairs = ((name, part) for name in VARIANTS for part in (warm, steps))
    found = pd.concat(part[part.recipe.str.startswith(name)] for name, part in pairs)
    caption = (
        "The gap with augmentation, weight decay, both or neither in all stages, to fresh networks trained "
        "for the last stage only and to those trained for as many steps in total: every seed (dots), mean "
        "(diamond) and its 95 % interval (bar). Each kind of network has the learning rate that is best "
        "for it on held-out training images; the other runs are of other rates "
        "or tested on held-out images."
    )
    drawn = common.gap_strip(found, by="recipe")
    return captioned(drawn, results, "fig-recipe", caption, f"The mean gap is {listed(found, 'recipe')}.")


def levels(results: Results) -> Table | Words:
    """Mean accuracies and gaps by part of the recipe, each arm at its best rate."""
    if not answered(results):
        return Words(unrecorded(results))
    rows = []
    for (name, condition), runs in at_own_rates(results.table).groupby(["recipe", "condition"], sort=False):
        test, train = (f"{100 * runs[kind].mean():.1f} %" for kind in ("test_accuracy", "train_accuracy"))
        row = {"recipe": name, "condition": condition, "rate": f"{runs.rate.iloc[0]:g}x", "train": train}
        row |= {"test": test, "gap": "", "gap at equal steps": ""}
        if condition == WARM:
            row |= {"gap": str(mean_estimate(runs.gap.dropna()))}
            row |= {"gap at equal steps": str(mean_estimate(runs.gap_longer.dropna()))}
        rows.append(row)
    return Table(pd.DataFrame(rows))


STUDIES = (
    Study(
        "recipe",
        "Does the gap survive augmentation and weight decay?",
        "none",
        "09_beyond",
        recipe,
        ("recipe", "rate", "held_out"),
        answered=answered,
    ),
)


CLAIMS = ()
