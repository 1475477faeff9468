"""Does pretraining on half of the data hurt? (Figure 1)"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from repro.analysis.claims import SAME, Arms, Claim, gap
from repro.analysis.recorded import Results
from repro.lazy import Lazy
from repro.profiles import Profile
from repro.study import FRESH, LONGER, WARM, Arm, Study, crossed, pair, pretraining, tuning

pd = Lazy("pandas")


@partial(crossed, first=True)
def warm_start(profile: Profile) -> Iterator[Arm]:
    """Fresh networks, against networks pretrained on half of the data."""
    half = pretraining(profile)
    tuned = tuning(profile, epochs=profile.tuning_epochs)
    yield Arm(FRESH, (tuned,), priority=0)
    yield Arm(WARM, (half, tuned), priority=0)


@crossed
def budget(profile: Profile) -> Iterator[Arm]:
    """Warm starts against fresh networks that are trained for as many steps in all."""
    yield from pair(profile)
    if profile.controls:
        epochs = profile.arms_tuned + round(profile.pretraining_epochs / 2)  # half of the data
        yield Arm(LONGER, (tuning(profile, epochs=epochs),), priority=1)


def _gap_in_as_many_steps(arm: Arms) -> pd.Series:
    return arm(WARM) - arm(LONGER)


def _train_difference(results: Results) -> pd.Series:
    by = results.table.pivot_table(index="seed", columns="condition", values="train_accuracy")
    return 100 * (by[WARM] - by[FRESH])


STUDIES = (
    Study(
        "warm_start", "Does pretraining on half of the data hurt?", "Figure 1", "01_warm_start", warm_start
    ),
    Study("budget", "Is it the warm start's longer training?", "control", "01_warm_start", budget),
)


CLAIMS = (
    Claim(
        "gap",
        "Networks pretrained on half of the data generalise worse than fresh ones.",
        "Figure 1",
        "warm_start",
        gap,
    ),
    Claim(
        "gap_as_many_steps",
        "They also do against fresh networks trained for as many steps in all.",
        "control",
        "budget",
        _gap_in_as_many_steps,
        exploratory=("cifar10",),
    ),
    Claim(
        "fits_equally",
        "Both fit the training data equally well.",
        "Figure 1",
        "warm_start",
        direction=SAME,
        margin=1.0,
        effect=_train_difference,
    ),
)
