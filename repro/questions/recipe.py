"""Does the gap survive the usual recipe of augmentation and weight decay? (not in the paper)"""

from __future__ import annotations

from collections.abc import Iterator

from repro.config import Optimizer
from repro.data import datasets
from repro.lazy import Lazy
from repro.profiles import Profile
from repro.study import FRESH, WARM, Arm, Study, crossed, pair

pd = Lazy("pandas")

DECAY = 0.1  # of weights, decoupled; steps shrink them by this times the learning rate
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
    for name, (augmented, decayed) in PARTS.items() if profile.controls else ():
        moved = augmentation(profile) if augmented else {}
        for k in (1, 3, 10):
            rate = k * profile.learning_rate
            optimizer = Optimizer(learning_rate=rate, weight_decay=DECAY if decayed else 0.0)
            for held_out in (False, True):
                factors = {"recipe": name, "rate": k, "held_out": held_out}
                yield from pair(profile, factors, optimizer=optimizer, held_out=held_out, **moved)


def at_own_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The warm runs of the study with the `gap` of each, in points, and the rates of the two, by recipe.

    Fresh and warm networks each have the rate at which the mean accuracy on
    held-out training images is highest. Recipes of which none is recorded are left out.
    """
    held_out = table.held_out.astype(bool) if len(table) else table.seed < 0
    means = table[held_out].groupby(["recipe", "condition", "rate"]).test_accuracy.mean().dropna()
    rows = []
    for name in PARTS:
        with_it = table[~held_out & (table.get("recipe") == name)]
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
    return pd.concat(rows) if rows else table.iloc[:0].assign(gap=[], fresh_rate=[])


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
