"""Do wider or deeper networks escape the gap? (Figure 5)"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from repro.analysis.claims import FITTED, Arms, claim, gap
from repro.analysis.recorded import Results
from repro.analysis.stats import signed
from repro.config import Model
from repro.figures import common
from repro.figures.shown import Captioned, Words, captioned, enumerated, unrecorded
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
    """The gap at each size; not tested if networks of any size do not fit the data."""
    sizes = sorted({(case.factors["width"], case.factors["depth"]) for case in arm.planned})
    return {(width, depth): gap(arm, width=width, depth=depth) for width, depth in sizes}


def found(results: Results) -> Words:
    """Mean gap at sizes at which both networks fit their images, and at the others."""
    if results.gaps.empty:
        return Words(unrecorded(results))
    of_size = ["width", "depth"]
    trained = results.table.groupby([*of_size, "condition"]).train_accuracy.mean()
    means = results.gaps.groupby(of_size).gap.mean()
    fits = trained.groupby(of_size).min()[means.index] >= FITTED
    said = {
        fit: enumerated(f"{signed(means[w, d])} at width {w}, depth {d}" for w, d in fits.index[fits == fit])
        for fit in fits.unique()
    }
    words = ""
    if True in said:
        words += f"At sizes where both networks fit their training images, the mean gap is {said[True]}. "
    if False in said:
        words += "At sizes where a network does not fit its training images, so that the claim cannot be "
        words += f"tested, the mean gap is {said[False]}."
    return Words(words.strip())


def gaps(results: Results) -> Captioned | Words:
    """The gap against width, a line for each depth (Figure 5)."""
    drawn = common.gap_lines(results.gaps, "width", "depth", "Width w, in channels", log=True)
    caption = (
        "Generalisation gap against width, with a line for each depth (blocks per module), as in the "
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
