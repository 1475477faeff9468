"""Does the optimiser affect the gap? (Figures 8, 9 and 10)"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from repro.analysis.claims import Claim, gap
from repro.analysis.recorded import Results
from repro.figures import common
from repro.figures.shown import Captioned, Words, captioned, listed
from repro.scales import Profile
from repro.study import Arm, Study, crossed, pair


@crossed
def optimizers(profile: Profile) -> Iterator[Arm]:
    """Fresh and warm-started networks under each optimiser."""
    for name, optimizer in profile.optimizers.items():
        yield from pair(profile, {"optimizer": name}, optimizer=optimizer, priority=6)


def found(results: Results) -> Words:
    """The gap under each optimiser, in words."""
    return Words(
        f"The mean gap in percentage points is {listed(results.gaps, 'optimizer')}. It is "
        "meaningful only for optimisers with which a fresh network learns and fits its training images; "
        "the table of accuracies below shows which."
    )


def gaps(results: Results) -> Captioned | Words:
    """The gap of every seed under each optimiser (Figures 8, 9 and 10)."""
    caption = (
        "Generalisation gap with each optimiser: every seed (dots), mean (diamond) and its 95 % interval by "
        "Student's t (bar)."
    )
    alt = (
        f"Generalisation gap under each optimiser, in percentage points: {listed(results.gaps, 'optimizer')}."
    )
    return captioned(common.gap_strip(results.gaps, "optimizer"), results, "fig-optimisers", caption, alt)


STUDIES = (
    Study(
        "optimizers",
        "Does the optimiser affect the gap?",
        "Figures 2, 8, 9, 10",
        "02_optimizers",
        optimizers,
        ("optimizer",),
    ),
)


CLAIMS = tuple(
    Claim(id, f"The gap is there with {name}.", figure, "optimizers", partial(gap, optimizer=name))
    for id, name, figure in (
        ("gap_rmsprop", "RMSprop", "Figure 8"),
        ("gap_sgd", "SGD", "Figure 9"),
        ("gap_momentum", "SGD with momentum", "Figure 10"),
    )
)
