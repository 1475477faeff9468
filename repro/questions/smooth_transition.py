"""Does a smooth transition avoid the gap? (Figure 3)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from repro.analysis.claims import Arms, claim
from repro.analysis.recorded import Results
from repro.config import ALL, HALF
from repro.data.sampling import p_full
from repro.figures import common, style
from repro.figures.shown import Captioned, Words, captioned, contrast, enumerated, listed
from repro.figures.style import blank, styled
from repro.lazy import Lazy
from repro.scales import Profile
from repro.study import FRESH, LAST, REPLACED, WARM, Arm, Explored, Study, crossed, pair

np, pd = Lazy("numpy"), Lazy("pandas")

GAMMAS = (0.1, 0.5, 0.9)  # from the shortest to the longest smooth transition


@crossed
def smooth_transition(profile: Profile) -> Iterator[Arm]:
    """One stage whose examples come from all of the data with a growing probability.

    The transition draws with replacement, which an ordinary epoch does not. A control
    therefore draws all of its examples from all of the data, with replacement.
    """
    yield from pair(profile)
    gammas = (0.1, 0.3, 0.5, 0.7, 0.9) if profile.full_grids else GAMMAS
    for gamma in gammas:
        stage = profile.stage(profile.arms_tuned, replace(HALF, gamma=gamma))
        priority = 3 if gamma in GAMMAS else LAST
        yield Arm("smooth", (stage,), {"gamma": gamma}, priority=priority)
    if profile.controls:  # with ALL in place of HALF, gamma has no effect
        stage = profile.stage(profile.arms_tuned, replace(ALL, gamma=0.5))
        yield Arm(REPLACED, (stage,), priority=3)


@claim("The gap survives a smooth transition.", "Figure 3", "smooth_transition")
def survives_smoothness(arm: Arms) -> pd.Series:
    return sum(arm("smooth", gamma=g) for g in GAMMAS) / len(GAMMAS) - arm(REPLACED)


@claim("Even a short smooth transition leaves a gap.", "Figure 3", "smooth_transition")
def survives_short_transition(arm: Arms) -> pd.Series:
    return arm("smooth", gamma=GAMMAS[0]) - arm(REPLACED)


@styled
def transition(gammas: Iterable[float], epochs: int) -> style.mpl.Figure:
    """Probability of drawing from all of the data, along the only stage (Figure 3)."""
    figure, ax = blank()
    gammas = sorted(gammas)
    n = np.linspace(0, epochs, 501)
    ramp = style.shades("#4FA98A", "#003D2C", len(gammas))
    for gamma, shade, symbol in zip(gammas, ramp, "^osDvPX<>", strict=False):
        p = p_full(n, epochs, gamma)
        ax.plot(n, p, color=shade, marker=symbol, markevery=0.08, mec="white", label=f"γ = {gamma:g}")
    ax.set_xlabel("Epochs of the only stage")
    ax.set_ylabel("Probability of drawing\nfrom all of the data")
    ax.legend(loc="lower right")
    return figure


def found(results: Results) -> Words:
    """The gap to fresh networks and to the control `REPLACED`, by γ, in words."""
    control, warm = contrast(results, REPLACED, FRESH), contrast(results, WARM, FRESH)
    to_control = results.gaps_to(REPLACED)
    said = f"The mean gap to fresh networks is {listed(results.gaps, 'gamma', 'γ = {}')}"
    said += f"; for the abrupt warm start it is {warm}. "
    if control.n:
        said += f"Drawing with replacement alone changes test accuracy by {control} points; the gap to that "
        said += "control is "
        said += f"{listed(to_control[to_control.condition == 'smooth'], 'gamma', 'γ = {}')}."
    else:
        said += "The control that draws with replacement is not recorded at this scale."
    return Words(said)


def gaps(results: Results) -> Captioned | Words:
    """The gap against γ, to fresh networks and to the control (Figure 3)."""
    to_fresh, to_control = results.gaps, results.gaps_to(REPLACED)
    there = [to_fresh.assign(to=np.where(to_fresh.gamma.notna(), FRESH, None))]
    there += [to_control[to_control.condition == "smooth"].assign(to=REPLACED)] if len(to_control) else []
    both = pd.concat(there, ignore_index=True)
    drawn = common.gap_lines(both, "gamma", "to", xlabel="γ (larger: smoother)")
    caption = (
        "Test accuracy after a smooth transition, minus that of fresh networks and minus that of the "
        "control that draws from all of the data with replacement: dots are seeds, markers their mean, "
        "bars its 95 % interval; the dashed line and its band show the abrupt warm start."
    )
    return captioned(drawn, results, "fig-smooth", caption, f"Gap against gamma. {found(results)}")


def ramps(results: Results) -> Captioned | Words:
    """Probability of drawing from all of the data along the stage, for each γ."""
    planned = (case.factors for case in results.study.cases(results.profile))
    gammas = sorted({factors["gamma"] for factors in planned if "gamma" in factors})
    epochs = results.profile.arms_tuned
    half = {gamma: epochs * np.log(0.5) / np.log(gamma) / 50 for gamma in gammas}
    said = enumerated([f"{half[g]:.2g} epochs for γ = {g:g}" for g in gammas])
    caption = (
        f"Probability of drawing an example from all of the data, for each γ, over {epochs} epochs. "
        f"A larger γ is smoother. Half of the examples come from all of the data after {said}."
    )
    return captioned(transition(gammas, epochs), results, "fig-transition", caption, caption)


STUDIES = (
    Study(
        "smooth_transition",
        "Does a smooth transition avoid the gap?",
        "Figure 3",
        "04_smooth_transition",
        smooth_transition,
        explored=(Explored("gamma", "γ", "γ = {}".format),),
    ),
)
CLAIMS = (survives_smoothness, survives_short_transition)
