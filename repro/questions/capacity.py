"""Do wider or deeper networks escape the gap? (Figure 5)"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from repro.analysis.claims import Arms, NotFitted, claim, gap
from repro.analysis.recorded import Results
from repro.config import Model
from repro.figures import common
from repro.figures.shown import Captioned, Words, captioned, listed
from repro.lazy import Lazy
from repro.scales import Profile
from repro.study import Arm, Study, crossed, pair

pd = Lazy("pandas")


@crossed
def capacity(profile: Profile) -> Iterator[Arm]:
    """Fresh and warm networks of several widths and depths (appendix A.4)."""
    base = profile.width
    widths = sorted({max(1, base // 2), base, *([] if profile.least else [2 * base])})
    depths = (1, 2, 3) if profile.full_grids else (1, 2)
    for width, depth in itertools.product(widths, depths):
        own = (width, depth) == (profile.width, profile.depth)
        model = None if own else Model(width, depth)
        factors = {"width": width, "depth": depth}
        yield from pair(profile, factors, model=model, priority=8)


@claim("The gap persists at every width and depth.", "Figure 5", "capacity")
def every_capacity(arm: Arms) -> dict[object, pd.Series]:
    """The gap at each width and depth at which the networks fit."""
    found, unfitted = {}, None
    for width, depth in sorted({(factors["width"], factors["depth"]) for factors in arm.planned}):
        try:
            found[width, depth] = gap(arm, width=width, depth=depth)
        except NotFitted as reason:
            unfitted = reason
    if unfitted and not found:
        raise unfitted
    return found


def found(results: Results) -> Words:
    """The gap by width and by depth, in words."""
    width, depth = listed(results.gaps, "width", "width {}"), listed(results.gaps, "depth", "depth {}")
    return Words(f"Averaged over depths, the mean gap is {width}; averaged over widths, it is {depth}.")


def gaps(results: Results) -> Captioned | Words:
    """The gap against width, a line for each depth (Figure 5)."""
    drawn = common.gap_lines(results.gaps, "width", "depth", "Width w, in channels", log=True)
    caption = (
        "Generalisation gap against width, a line for each number d of blocks per module, as in the "
        "paper's Figure 5: dots are seeds, markers their mean, bars its 95 % interval."
    )
    return captioned(drawn, results, "fig-capacity", caption, found(results))


STUDIES = (
    Study(
        "capacity",
        "Do wider or deeper networks escape the gap?",
        "Figure 5",
        "06_capacity",
        capacity,
        ("width", "depth"),
    ),
)
CLAIMS = (every_capacity,)
