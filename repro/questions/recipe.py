"""Does the gap survive the usual recipe of augmentation and weight decay? (not in the paper)"""

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

# Of the weights in a step at the base rate: a decay of 0.1 for Adam at 0.001, of 5e-4 for SGD at 0.2.
SHRINKING = 1e-4
MIRRORED = ("cifar10", "cifar100")  # data sets whose images, mirrored, are images of the same class
PARTS = {  # of the recipe: whether images are augmented, and weights decay
    "neither": (False, False),
    "augmentation": (True, False),
    "weight decay": (False, True),
    "both": (True, True),
}


def augmentation(profile: Profile) -> dict[str, object]:
    """Shifts by an eighth of an image's side, as is usual, and mirroring where that keeps the class."""
    side = datasets.side(profile.data())
    return {"shift": max(1, side // 8), "flip": profile.dataset in MIRRORED}


@crossed
def recipe(profile: Profile) -> Iterator[Arm]:
    """Fresh and warm networks with parts of the recipe in all stages, at rates chosen on held-out images.

    Augmented images are not fitted within a stage, and a warm start has had more
    steps: beside it stands a fresh network that is trained for as many in all.
    """
    decay = SHRINKING / profile.optimizer.learning_rate
    for name, (augmented, decayed) in PARTS.items() if profile.controls else ():
        moved = augmentation(profile) if augmented else {}
        for k in own_rate_factors(profile):
            settings = {"optimizer": profile.at_rate(k, weight_decay=decay if decayed else 0.0), **moved}
            longer = as_many_steps(profile, **settings)
            for held_out in (False, True):
                factors = {"recipe": name, "rate": k, "held_out": held_out}
                yield from pair(profile, factors, held_out=held_out, **settings)
                yield Arm(LONGER, (longer,), factors, held_out=held_out)


def at_own_rates(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each run of the study that is at the best rate of its recipe and condition.

    That is the rate at which the mean accuracy on held-out training images is
    highest. Warm starts have their `gap` to fresh networks, in points, and
    `gap_longer` to those with as many steps, each where both are recorded.
    """
    if table.empty:
        return pd.DataFrame(columns=[*table, "gap", "gap_longer"])
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


def found(results: Results) -> Words:
    """The gap to fresh networks of as many steps, with each part of the recipe, in words."""
    warm = at_own_rates(results.table).query("condition == @WARM").dropna(subset="gap_longer")
    if warm.empty:
        return Words(unrecorded(results))
    said = [f"{mean_estimate(warm[warm.recipe == name].gap_longer)} with {name}" for name in PARTS]
    return Words(
        "Each at its own rate, and beside fresh networks of as many steps in all, the mean gap in percentage "
        f"points is {enumerated(said)}."
    )


def gaps(results: Results) -> Captioned | Words:
    """The gap with each part of the recipe."""
    if not results.planned_seeds:
        return Words(f"The profile `{results.profile.name}` has no runs with the usual recipe.")
    warm = at_own_rates(results.table).query("condition == @WARM")
    steps = warm.assign(gap=warm.gap_longer, recipe=warm.recipe + ", as many steps")
    pairs = ((name, part) for name in PARTS for part in (warm, steps))
    found = pd.concat(part[part.recipe.str.startswith(name)] for name, part in pairs)
    caption = (
        "The gap with augmentation, with weight decay, with both and with neither, in all stages: every seed "
        "(dots), mean (diamond) and its 95 % interval (bar), to fresh networks of the stage and to those "
        "that had as many steps in all. Each has the learning rate that is best for it on held-out "
        "training images."
    )
    drawn = common.gap_strip(found, by="recipe")
    return captioned(drawn, results, "fig-recipe", caption, f"The mean gap is {listed(found, 'recipe')}.")


def levels(results: Results) -> Table | Words:
    """What each network reaches with each part of the recipe, at its own rate, and the gaps."""
    if results.table.empty:
        return Words(unrecorded(results))
    rows = []
    for (name, condition), runs in at_own_rates(results.table).groupby(["recipe", "condition"], sort=False):
        test, train = (f"{100 * runs[kind].mean():.1f} %" for kind in ("test_accuracy", "train_accuracy"))
        row = {"recipe": name, "condition": condition, "rate": f"{runs.rate.iloc[0]:g}x", "train": train}
        row |= {"test": test, "gap": "", "gap at as many steps": ""}
        if condition == WARM:
            row |= {"gap": str(mean_estimate(runs.gap.dropna()))}
            row |= {"gap at as many steps": str(mean_estimate(runs.gap_longer.dropna()))}
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
    ),
)


CLAIMS = ()
