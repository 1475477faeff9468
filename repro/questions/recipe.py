"""Does the gap survive the usual recipe of augmentation and weight decay? (not in the paper)"""

from __future__ import annotations

from collections.abc import Iterator

from repro.analysis.recorded import Results
from repro.data import datasets
from repro.figures import common
from repro.figures.shown import Captioned, Words, captioned, listed
from repro.lazy import Lazy
from repro.profiles import Profile
from repro.study import FRESH, WARM, Arm, Study, crossed, own_rate_factors, pair

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
    """Fresh and warm networks with parts of the recipe in all stages, at rates chosen on held-out images."""
    decay = SHRINKING / profile.optimizer.learning_rate
    for name, (augmented, decayed) in PARTS.items() if profile.controls else ():
        moved = augmentation(profile) if augmented else {}
        for k in own_rate_factors(profile):
            optimizer = profile.at_rate(k, weight_decay=decay if decayed else 0.0)
            for held_out in (False, True):
                factors = {"recipe": name, "rate": k, "held_out": held_out}
                yield from pair(profile, factors, optimizer=optimizer, held_out=held_out, **moved)


def at_own_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The warm runs of the study with the `gap` of each, in points, and the rates of the two, by recipe.

    Fresh and warm networks each have the rate at which the mean accuracy on
    held-out training images is highest. Recipes of which none is recorded are left out.
    """
    if table.empty:
        return pd.DataFrame(columns=[*table, "gap", "fresh_rate"])
    held_out = table.held_out.astype(bool)
    means = table[held_out].groupby(["recipe", "condition", "rate"]).test_accuracy.mean().dropna()
    rows = []
    for name in PARTS:
        with_it = table[~held_out & (table.recipe == name)]
        known = [c for c in (FRESH, WARM) if (name, c) in means.index.droplevel("rate")]
        if len(known) < 2:
            continue
        rates = {c: means[name, c].idxmax() for c in known}
        fresh, warm = (with_it[(with_it.condition == c) & (with_it.rate == rates[c])] for c in known)
        paired = warm.assign(
            gap=100 * (warm.test_accuracy - warm.seed.map(fresh.set_index("seed").test_accuracy)),
            fresh_rate=rates[FRESH],
            condition=name,
        )
        rows.append(paired.dropna(subset="gap"))
    return pd.concat(rows) if rows else at_own_rates(table.iloc[:0])


def gaps(results: Results) -> Captioned | Words:
    """The gap with each part of the recipe."""
    if not results.planned_seeds:
        return Words(f"The profile `{results.profile.name}` has no runs with the usual recipe.")
    found = at_own_rates(results.table)
    caption = (
        "The gap with augmentation, with weight decay, with both and with neither, in all stages: every seed "
        "(dots), mean (diamond) and its 95 % interval (bar). Fresh and warm networks each have the learning "
        "rate that is best on held-out training images."
    )
    drawn = common.gap_strip(found)
    return captioned(drawn, results, "fig-recipe", caption, f"The mean gap is {listed(found, 'condition')}.")


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
