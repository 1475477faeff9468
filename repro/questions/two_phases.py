"""Does a larger learning rate close the gap, and why? (Figure 7 and discussion)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from repro.analysis.claims import FITTED, MORE, Arms, claim, verdicts
from repro.analysis.recorded import Results
from repro.figures import common, style
from repro.figures.shown import Captioned, Words, captioned, contrast, enumerated, listed, unrecorded
from repro.figures.style import blank, colour, known, line, marker, message, styled
from repro.lazy import Lazy
from repro.scales import Profile
from repro.study import (
    CONTROL,
    FRESH,
    LAST,
    WARM,
    Arm,
    Study,
    crossed,
    own_rate_factors,
    pair,
    pretraining,
    tuning,
)

np, pd = Lazy("numpy"), Lazy("pandas")


@crossed
def two_phases(profile: Profile) -> Iterator[Arm]:
    """A larger learning rate in all of tuning, or in its first half only."""
    epochs, rates = profile.arms_tuned, {k: profile.at_rate(k) for k in (3, 10, 30)}
    fast = {k: tuning(profile, optimizer=rate) for k, rate in rates.items()}
    half = pretraining(profile)
    first = max(1, epochs // 2)
    there_and_back = (
        tuning(profile, epochs=first, optimizer=rates[10]),
        tuning(profile, epochs=max(1, epochs - first)),
    )
    yield from pair(profile)
    for k, stage in fast.items():
        yield Arm(f"warm start, {k}x", (half, stage), priority=1 if k == 10 else LAST)
    yield Arm("warm start, 10x then 1x", (half, *there_and_back), priority=1)
    yield Arm("fresh, 10x", (fast[10],), priority=1)
    yield Arm("fresh, 10x then 1x", there_and_back, priority=1)


@crossed
def rates(profile: Profile) -> Iterator[Arm]:
    """Both networks at several rates in all stages.

    With `controls`, each also has runs that are tested on held-out training images.
    """
    for k in own_rate_factors(profile) if profile.least or profile.controls else ():
        for held_out in (False, True) if profile.controls else (False,):
            factors = {"rate": k, "held_out": held_out}
            settings = {"optimizer": profile.at_rate(k), "held_out": held_out}
            yield from pair(profile, factors, **settings, priority=5)


def probe_epochs(profile: Profile) -> list[int]:
    """Numbers of epochs of tuning after which networks are probed, up to the last."""
    last = profile.arms_tuned
    later = (last,) if profile.exploratory or profile.least else (3 * last // 4, last)
    early = (1, 2, 3) if profile.least else (1, 2, 3, 5, 10)
    return sorted({*(n for n in early if n < last), *later} - {0})


@crossed
def probes(profile: Profile) -> Iterator[Arm]:
    """Gradient noise and sharpness of both networks after several epochs of tuning.

    Exploratory profiles keep older probes, with sharpness after the last epoch only.
    """
    for condition, before in {FRESH: (), WARM: (pretraining(profile),)}.items():
        for n in probe_epochs(profile):
            if not profile.exploratory:
                names = ("noise", "curvature")
            else:
                last = ["sharpness"] if n == profile.arms_tuned else []
                names = ("gradient_noise", *last)
            stages = (*before, tuning(profile, epochs=n))
            factors = {"tuning_epochs": n}
            yield Arm(condition, stages, factors, probes=names, priority=7)


@claim(
    "Warm starts also generalise worse if each network has its own best rate on held-out images.",
    CONTROL,
    "rates",
)
def gap_best_rates(arm: Arms) -> pd.Series:
    return arm(WARM, rate=arm.best_rate(WARM)) - arm(FRESH, rate=arm.best_rate(FRESH))


@claim("A ten times larger rate in tuning shrinks the gap.", "Figure 7", "two_phases", direction=MORE)
def rate_shrinks(arm: Arms) -> pd.Series:
    return arm("warm start, 10x") - arm(WARM)


@claim("A larger rate alone does not close the gap.", "Figure 7", "two_phases")
def rate_not_enough(arm: Arms) -> pd.Series:
    return arm("warm start, 10x") - arm(FRESH)


def probe_ratio(results: Results, probe: str, epochs: Iterable[int]) -> pd.Series:
    """Log ratio of a probe, warm start over fresh, by seed with all its runs; mean over these epochs."""
    table = results.complete
    chosen = table[table.tuning_epochs.isin(list(epochs))]
    by = chosen.pivot_table(index=["seed", "tuning_epochs"], columns="condition", values=probe)
    return np.log(by[WARM] / by[FRESH]).groupby("seed").mean()


@claim(
    "Early in tuning, a warm start has less gradient noise than a fresh network.",
    "section 3",
    "probes",
    "effect",
    unit="log ratio",
)
def less_noise(results: Results) -> pd.Series:
    early = [n for n in (1, 2, 3) if n < results.profile.arms_tuned]
    return probe_ratio(results, "noise_trace", early)


def at_loss(table: pd.DataFrame, loss: float) -> float:
    """Curvature of a network at `loss`, log-log between its probes; NaN outside."""
    known = table.dropna(subset=["curvature", "curvature_loss"])
    known = known[(known.curvature > 0) & (known.curvature_loss > 0)].sort_values("curvature_loss")
    x, y = np.log(known.curvature_loss), np.log(known.curvature)
    return float(np.exp(np.interp(np.log(loss), x, y, np.nan, np.nan))) if len(known) else np.nan


def sharpness_at_equal_loss(table: pd.DataFrame) -> pd.DataFrame:
    """Sharpness (largest eigenvalue of the Hessian) of both networks, a row per seed.

    Both are at the same training loss, the larger of their two final ones: the lowest
    that both reach. NaN if either has no run, or if its probes do not span that loss.
    """
    rows = {}
    for seed, part in table.groupby("seed"):
        runs = {name: part[part.condition == name] for name in (FRESH, WARM)}
        ends = [run.sort_values("tuning_epochs")["curvature_loss"].iloc[-1:].max() for run in runs.values()]
        rows[seed] = {name: at_loss(run, np.max(ends)) for name, run in runs.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[FRESH, WARM])


@claim(
    "At the lowest training loss that both networks reach, the warm start is sharper.",
    "section 3",
    "probes",
    "effect",
    direction=MORE,
    unit="log ratio",
)
def sharper(results: Results) -> pd.Series:
    found = sharpness_at_equal_loss(results.complete)  # between fewer epochs it would come out otherwise
    return np.log(found[WARM] / found[FRESH])


NOISES = {"noise_trace": "all images", "noise_trace_old": "the old half", "noise_trace_new": "the new half"}
NOISE_BEFORE = {"gradient_noise": "noise over signal"}  # in records that lack NOISES


@styled
def noise(table: pd.DataFrame) -> style.mpl.Figure:
    """Gradient noise along tuning, as geometric means; a panel for each image set."""
    asked = NOISES if NOISES.keys() <= set(table.columns) else NOISE_BEFORE
    panels = [(c, label, known(table, "tuning_epochs", c)) for c, label in asked.items()]
    panels = [(c, label, part[part[c] > 0]) for c, label, part in panels if len(part)]
    if not panels:
        return message()
    figure, axes = blank(1, len(panels), height=3.9, sharey=True, squeeze=False)
    for ax, (column, label, part) in zip(axes[0], panels, strict=True):
        names = list(part.condition.unique())
        for i, (name, look) in enumerate(zip(names, style.looks(names), strict=True)):
            runs = part[part.condition == name]
            at = style.spread(i, len(names), part.tuning_epochs, log=True)[runs.index]
            line(ax, runs, "tuning_epochs", column, *look, name, at=at, log=True)
        style.logarithmic(ax, "y")
        style.ticks(ax, sorted(set(part.tuning_epochs))[::2], log=True)
        ax.set_title(label, fontsize="medium")
        ax.set_xlabel("Epochs of tuning")
    axes[0, 0].set_ylabel("Gradient noise")
    style.legend(figure, axes[0, 0])
    return figure


@styled
def curvature(table: pd.DataFrame) -> style.mpl.Figure:
    """Sharpness against training loss along tuning, a line per seed, on log scales.

    Where two lines coincide, both networks are equally sharp at equal loss.
    """
    table = known(table, "curvature", "curvature_loss")
    table = table[(table.curvature > 0) & (table.curvature_loss > 0)] if len(table) else table
    if table.empty:
        return message()
    figure, ax = blank(height=3.9)
    for (condition, seed), run in table.sort_values("tuning_epochs").groupby(["condition", "seed"]):
        label = condition if seed == table.seed.min() else None
        look = {"color": colour(condition), "marker": marker(condition)}
        ax.plot(run.curvature_loss, run.curvature, **look, alpha=0.7, lw=1.2, mec="white", label=label)
    style.logarithmic(ax, "x")
    style.logarithmic(ax, "y")
    ax.invert_xaxis()
    ax.set_xlabel("Mean training loss (training goes to the right)")
    ax.set_ylabel("Largest eigenvalue\nof the Hessian")
    style.legend(figure, ax)
    return figure


def found(results: Results) -> Words:
    """The gap between networks tuned at the same rate, base or larger, in words."""
    base = contrast(results, WARM, FRESH)
    fast = contrast(results, "warm start, 10x", "fresh, 10x")
    back = contrast(results, "warm start, 10x then 1x", "fresh, 10x then 1x")
    return Words(
        f"In test accuracy, the warm start minus the fresh network is {base} percentage points at the base "
        f"rate, {fast} if both have ten times that rate in tuning, and {back} if both return to the base "
        f"rate for the second half."
    )


def at_best_rates(results: Results) -> Words:
    """The gap if each network has its own best rate in all stages; `results` are of the study `rates`."""
    [verdict] = verdicts([(gap_best_rates, results)])
    effect, profile = verdict.effect, results.profile
    if not effect.n:
        return Words(verdict.reason or unrecorded(results))
    warm, fresh = map(Arms(results).best_rate, (WARM, FRESH))
    excluded = "excludes" if effect.low > 0 or effect.high < 0 else "does not exclude"
    return Words(
        "If each network has in all stages the learning rate that is best for it on held-out training images "
        f"({warm:g} times the base rate for warm starts, {fresh:g} times for fresh networks), the gap is "
        f"{effect} percentage points, which {excluded} zero. (Profile `{profile.name}`.)"
    )


def gaps(results: Results) -> Captioned | Words:
    """Gaps to fresh networks at the base rate, at larger tuning rates (Figure 7)."""
    caption = (
        "Test accuracy with larger learning rates in tuning minus that of fresh networks at the base rate "
        f"{results.profile.optimizer.learning_rate:g}: every seed (dots), mean (diamond) and its 95 % "
        "interval (bar). Compare the paper's Figure 7."
    )
    alt = f"Difference from fresh networks at the base rate, in points: {listed(results.gaps, 'condition')}."
    return captioned(
        common.gap_strip(results.gaps, xlabel=style.DIFFERENCE), results, "fig-rates", caption, alt
    )


def own_rates(results: Results) -> Captioned | Words:
    """The gap if both networks have the same rate in all stages, against that rate."""
    if results.table.empty:
        return Words(unrecorded(results))
    tested = results.gaps[~results.gaps.held_out.astype(bool)]
    fit = results.table[~results.table.held_out.astype(bool)].groupby(["rate", "condition"]).train_accuracy
    low = fit.mean().groupby("rate").min()
    rates = enumerated(f"{rate:g}" for rate in low.index[low < FITTED])
    unfitted = f" At {rates} times the base rate not all fit their images." if (low < FITTED).any() else ""
    caption = (
        "Generalisation gap if both networks have the same rate in all stages: dots are seeds, markers "
        f"their mean, bars its 95 % interval.{unfitted} Runs on held-out images are counted, not drawn."
    )
    drawn = common.gap_lines(tested, "rate", xlabel="Learning rate, in multiples of the base rate", log=True)
    alt = f"Generalisation gap by rate in all stages: {listed(tested, 'rate', '{} times the base rate')}."
    return captioned(drawn, results, "fig-own-rates", caption, alt)


def ratios(results: Results, probe: str) -> str:
    """A probe of warm starts over that of fresh networks, geometric mean over seeds.

    By epochs of tuning, in words: `0.81 after 1 and 0.95 after 2`.
    """
    if probe not in results.table:
        return "not recorded"
    by = results.table.pivot_table(index=["seed", "tuning_epochs"], columns="condition", values=probe)
    means = np.exp(np.log(by[WARM] / by[FRESH]).groupby("tuning_epochs").mean().dropna())
    return enumerated([f"{ratio:.2f} after {n:g}" for n, ratio in means.items()])


def noise_along(results: Results) -> Captioned | Words:
    """Gradient noise along tuning, on all images and, if recorded, on each half."""
    probe = "noise_trace" if "noise_trace" in results.table else "gradient_noise"
    caption = (
        "Gradient noise during tuning; if recorded, also on the half that the warm start was pretrained on "
        "(old) and on the other half (new): dots are seeds, markers their geometric mean, bars its 95 % "
        f"interval. Ratio of warm start to fresh, by epochs of tuning: {ratios(results, probe)}."
    )
    return captioned(noise(results.table), results, "fig-noise", caption, caption)


def sharpness_along(results: Results) -> Captioned | Words:
    """Sharpness against training loss along tuning, or a sentence if not recorded."""
    if "curvature" not in results.table:
        return Words(
            "Sharpness at equal training loss is not recorded at this scale; "
            "`repro run probes --profile cifar10-small` records it."
        )
    caption = (
        "Sharpness against training loss during tuning, one line for each seed; where lines of the two "
        "colours coincide, networks are equally sharp at the same loss. Ratio of warm start to fresh by "
        f"epochs of tuning, at losses that differ: {ratios(results, 'curvature')}."
    )
    return captioned(curvature(results.table), results, "fig-sharpness", caption, caption)


STUDIES = (
    Study(
        "two_phases", "Does a larger learning rate close the gap?", "Figure 7", "08_two_phases", two_phases
    ),
    Study(
        "rates",
        "Is there a gap if each arm has its own best rate?",
        CONTROL,
        "08_two_phases",
        rates,
        ("rate", "held_out"),
    ),
    Study(
        "probes",
        "Do warm starts skip a noisy phase of learning?",
        "its discussion",
        "08_two_phases",
        probes,
        ("tuning_epochs",),
    ),
)
CLAIMS = (gap_best_rates, rate_shrinks, rate_not_enough, less_noise, sharper)
