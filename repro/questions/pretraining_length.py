"""How much pretraining makes a gap? (Figure 2)"""

from __future__ import annotations

from collections.abc import Iterator

from repro.analysis.claims import Arms, claim, slope
from repro.analysis.recorded import Results
from repro.figures import common
from repro.figures.shown import Captioned, Words, captioned, listed
from repro.lazy import Lazy
from repro.scales import Profile
from repro.study import FRESH, LAST, WARM, Arm, Explored, Study, crossed, pretraining, tuning

np, pd = Lazy("numpy"), Lazy("pandas")

LENGTHS = (1, 5, 10, 20)  # epochs of pretraining for the claim that the gap grows
EARLY = (5, 10)  # epochs of pretraining that are said to suffice for a gap


def pretraining_lengths(profile: Profile) -> list[int]:
    """Numbers of epochs of pretraining to compare; the profile's own is the last."""
    grid = (1, 2, 5, 10, 20, 50, 100, 200) if profile.full_grids else (1, 5, 10)
    longest = profile.pretraining_epochs
    return [*(n for n in grid if n < longest), longest]


@crossed
def pretraining_length(profile: Profile) -> Iterator[Arm]:
    """Fresh networks, and warm starts after several lengths of pretraining."""
    for name, optimizer in profile.optimizers.items():
        tuned = tuning(profile, optimizer=optimizer)
        yield Arm(FRESH, (tuned,), {"optimizer": name})
        for epochs in pretraining_lengths(profile):
            half = pretraining(profile, optimizer=optimizer, epochs=epochs)
            factors = {"optimizer": name, "pretraining_epochs": epochs}
            early = name == "Adam" and epochs in LENGTHS
            yield Arm(WARM, (half, tuned), factors, priority=7 if early else LAST)


@claim(
    "The gap grows with the length of pretraining.",
    "Figure 2",
    "pretraining_length",
    unit="points per doubling",
)
def grows_with_pretraining(arm: Arms) -> pd.Series:
    tuned = [arm(WARM, optimizer="Adam", pretraining_epochs=n) for n in LENGTHS]
    return slope(tuned, np.log2(LENGTHS))


@claim("With Adam, five to ten epochs of pretraining suffice for a gap.", "Figure 2", "pretraining_length")
def appears_early(arm: Arms) -> pd.Series:
    tuned = [arm(WARM, optimizer="Adam", pretraining_epochs=n) for n in EARLY]
    return sum(tuned) / len(EARLY) - arm(FRESH, optimizer="Adam")


def found(results: Results) -> Words:
    """The gap by length of pretraining with Adam, in words."""
    adam = results.gaps[results.gaps.optimizer == "Adam"]
    said = listed(adam, "pretraining_epochs", "{} epochs")
    return Words(
        f"With Adam, the mean gap by length of pretraining on half of the data is {said}.".replace(
            " 1 epochs", " 1 epoch"
        )
    )


def gaps(results: Results) -> Captioned | Words:
    """Gap against pretraining length, a line per optimiser (Figures 2 and 8 to 10)."""
    label = "Epochs of pretraining on half of the data"
    drawn = common.gap_lines(results.gaps, "pretraining_epochs", "optimizer", label, log=True)
    caption = (
        "Generalisation gap against the length of pretraining, as in the paper's Figures 2 and 8 to 10: "
        "faint dots are seeds, markers their mean, bars its 95 % interval."
    )
    said = listed(results.gaps, "pretraining_epochs", "{} epochs")
    alt = (
        "Generalisation gap in percentage points against epochs of pretraining. Means over all optimisers: "
        f"{said}."
    )
    return captioned(drawn, results, "fig-lengths", caption, alt)


STUDIES = (
    Study(
        "pretraining_length",
        "How much pretraining makes a gap?",
        "Figures 2, 8, 9, 10",
        "03_pretraining_length",
        pretraining_length,
        ("optimizer",),
        (
            Explored("optimizer", "Optimiser", str, "menu"),
            Explored("pretraining_epochs", "Epochs of pretraining", "{} epochs of pretraining".format),
        ),
    ),
)
CLAIMS = (grows_with_pretraining, appears_early)
