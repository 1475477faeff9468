"""The paper's claims, each with the contrast it makes, and the verdict of the records on all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

from repro import sweep
from repro.claims import DECIDED, MORE, SAME, Arms, Claim, NotFitted, Verdict, slope, verdicts
from repro.config import MODULES
from repro.lazy import Lazy
from repro.profiles import PROFILES, Profile
from repro.records import Store
from repro.studies import (
    FRESH,
    GAMMAS,
    LENGTHS,
    LONGER,
    PARTS,
    REPLACED,
    STUDIES,
    WARM,
    noise_epochs,
    reset_condition,
)
from repro.sweep import Results

np, pd = Lazy("numpy"), Lazy("pandas")  # as in `repro.stats`

EARLY = (5, 10)  # epochs of pretraining after which, the paper says, a gap is there
UNEVEN = (2, 5, 10)  # portions that are also dealt by class, to one class in each
SPEED_AT = 0.9  # train accuracy whose epoch is compared where modules are kept
SPEED_LEVELS = (0.8, 0.9, 0.95)  # train accuracies at which the claim on speed is tested
RECOVERED = 0.8  # share of the gap that a reset has to close to count as recovery
LARGEST_FIRST = (
    "paper",
    "cifar10-wide",
    "cifar10",
    "cifar10-small",
    "laptop",
    "quick",
)  # a claim is told at the first that is whole


def gap(arm: Arms, **factors: object) -> pd.Series:
    """Warm start minus fresh network, in points."""
    return arm(WARM, **factors) - arm(FRESH, **factors)


def _gap_in_as_many_steps(arm: Arms) -> pd.Series:
    return arm(WARM) - arm(LONGER)


def _gap_at_best_rates(arm: Arms) -> pd.Series:
    return arm(WARM, rate=arm.best_rate(WARM)) - arm(FRESH, rate=arm.best_rate(FRESH))


def _growth_with_pretraining(arm: Arms) -> pd.Series:
    tuned = [arm(WARM, optimizer="Adam", pretraining_epochs=n) for n in LENGTHS]
    return slope(tuned, np.log2(LENGTHS))


def _early_gap(arm: Arms) -> pd.Series:
    tuned = [arm(WARM, optimizer="Adam", pretraining_epochs=n) for n in EARLY]
    return sum(tuned) / len(EARLY) - arm(FRESH, optimizer="Adam")


def _smooth_gap(arm: Arms, gammas: Sequence[float] = GAMMAS) -> pd.Series:
    return sum(arm("smooth", gamma=g) for g in gammas) / len(gammas) - arm(REPLACED)


def _growth_with_stages(arm: Arms) -> pd.Series:
    return slope([arm("stages", parts=n, ratio=1.0) for n in PARTS], PARTS)


def _effect_of_imbalance(arm: Arms) -> pd.Series:
    by_class = (arm("stages", parts=n, ratio=0.0) - arm("stages", parts=n, ratio=1.0) for n in UNEVEN)
    return sum(by_class) / len(UNEVEN)


def _gap_at_capacities(arm: Arms) -> dict[object, pd.Series]:
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


def last(k: int) -> str:
    """Condition in which the last k modules are re-initialised."""
    return reset_condition(MODULES[6 - k :])


def _gap_after_reset(arm: Arms) -> dict[object, pd.Series]:
    return {k: arm(last(k)) - arm(FRESH) for k in (1, 2)}


def _beyond_recovery(arm: Arms) -> dict[object, pd.Series]:
    needed = RECOVERED * (arm(FRESH) - arm(WARM))
    return {k: arm(last(k)) - arm(WARM) - needed for k in (4, 5)}


def _rate_effect(arm: Arms) -> pd.Series:
    return arm("warm start, 10x") - arm(WARM)


def _gap_at_a_larger_rate(arm: Arms) -> pd.Series:
    return arm("warm start, 10x") - arm(FRESH)


def _train_difference(results: Results) -> pd.Series:
    by = results.table.pivot_table(index="seed", columns="condition", values="train_accuracy")
    return 100 * (by[WARM] - by[FRESH])


def in_last_stage(curves: pd.DataFrame, run: Sequence[str] = ("condition", "seed")) -> pd.Series:
    """Which epochs belong to the last stage of their run; runs are told apart by these columns."""
    return curves.stage == curves.groupby(list(run)).stage.transform("max")


def epochs_to_reach(curves: pd.DataFrame, level: float, factors: Sequence[str] = ()) -> pd.DataFrame:
    """Epochs of the last stage until each run reaches a train accuracy, in the column `epochs`.

    A row for each run, told apart by condition, seed and these factors. Linear
    between the first epoch at which it does and the one before; 1 where that is
    the first of all, NaN for a run that never does.
    """
    run, column = ["condition", "seed", *factors], "train_accuracy"
    last = curves[in_last_stage(curves, run)]
    before = last.groupby(run)[column].shift()
    beyond = ((last[column] - level) / (last[column] - before)).where(before < level, 0.0)
    reached = (last.epoch - beyond)[last[column] >= level].groupby([last[name] for name in run]).first()
    every = last.groupby(run).size().index
    return reached.reindex(every).rename("epochs").reset_index()


def _speed_with_first_modules(results: Results) -> pd.DataFrame:
    """Logarithm of epochs over a fresh network's, averaged over levels, with one and two modules kept."""
    kept = {k: reset_condition(MODULES[k:]) for k in (1, 2)}
    found = []
    for level in SPEED_LEVELS:
        epochs = epochs_to_reach(results.curves, level)
        epochs = epochs.pivot(index="seed", columns="condition", values="epochs")
        found.append(pd.DataFrame({f"{k} kept": np.log(epochs[kept[k]] / epochs[FRESH]) for k in kept}))
    return sum(found) / len(found)


def probe_ratio(results: Results, probe: str, epochs: Iterable[int]) -> pd.Series:
    """Logarithm of warm over fresh by seed, averaged over epochs of tuning."""
    chosen = results.table[results.table.tuning_epochs.isin(list(epochs))]
    by = chosen.pivot_table(index=["seed", "tuning_epochs"], columns="condition", values=probe)
    return np.log(by[WARM] / by[FRESH]).groupby("seed").mean()


def _early_noise(results: Results) -> pd.Series:
    return probe_ratio(results, "noise_trace", noise_epochs(results.profile)[:3])


def at_loss(table: pd.DataFrame, loss: float) -> float:
    """Curvature of one network at a training loss, between what was probed (log-log); NaN beyond it."""
    known = table.dropna(subset=["curvature", "curvature_loss"])
    known = known[(known.curvature > 0) & (known.curvature_loss > 0)].sort_values("curvature_loss")
    x, y = np.log(known.curvature_loss), np.log(known.curvature)
    return float(np.exp(np.interp(np.log(loss), x, y, np.nan, np.nan))) if len(known) else np.nan


def sharpness_at_equal_loss(table: pd.DataFrame) -> pd.DataFrame:
    """Curvature of fresh and warm networks by seed, at the larger of the two last training losses."""
    rows = {}
    for seed, part in table.groupby("seed"):
        runs = {name: part[part.condition == name] for name in (FRESH, WARM)}
        ends = [run.sort_values("tuning_epochs")["curvature_loss"].iloc[-1:].max() for run in runs.values()]
        rows[seed] = {name: at_loss(run, max(ends)) for name, run in runs.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[FRESH, WARM])


def _sharpness(results: Results) -> pd.Series:
    found = sharpness_at_equal_loss(results.table)
    return np.log(found[WARM] / found[FRESH])


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
        "gap_best_rates",
        "They also do where each has the rate that is best for it on held-out images.",
        "control",
        "rates",
        _gap_at_best_rates,
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
    *(
        Claim(id, f"The gap is there with {name}.", figure, "optimizers", partial(gap, optimizer=name))
        for id, name, figure in (
            ("gap_rmsprop", "RMSprop", "Figure 8"),
            ("gap_sgd", "SGD", "Figure 9"),
            ("gap_momentum", "SGD with momentum", "Figure 10"),
        )
    ),
    Claim(
        "grows_with_pretraining",
        "The gap grows with the length of pretraining.",
        "Figure 2",
        "pretraining_length",
        _growth_with_pretraining,
        unit="points per doubling",
    ),
    Claim(
        "appears_early",
        "With Adam, five to ten epochs of pretraining suffice for a gap.",
        "Figure 2",
        "pretraining_length",
        _early_gap,
    ),
    Claim(
        "survives_smoothness",
        "The gap survives a smooth transition.",
        "Figure 3",
        "smooth_transition",
        _smooth_gap,
    ),
    Claim(
        "survives_short_transition",
        "Even a short smooth transition leaves a gap.",
        "Figure 3",
        "smooth_transition",
        partial(_smooth_gap, gammas=GAMMAS[:1]),
    ),
    Claim(
        "grows_with_stages",
        "The gap grows with the number of stages.",
        "Figure 4",
        "stages",
        _growth_with_stages,
        unit="points per stage",
    ),
    Claim(
        "grows_with_imbalance",
        "The gap grows with the imbalance of classes.",
        "Figure 4",
        "stages",
        _effect_of_imbalance,
        unit="points, uniform to pure",
    ),
    Claim(
        "every_capacity",
        "The gap persists at every width and depth.",
        "Figure 5",
        "capacity",
        _gap_at_capacities,
    ),
    Claim(
        "small_reset",
        "Re-initialising the last one or two modules is not enough.",
        "Figure 6",
        "reset",
        _gap_after_reset,
    ),
    Claim(
        "deep_reset",
        "Re-initialising the last four or five modules recovers, closing four fifths of the gap or more.",
        "Figure 6",
        "reset",
        _beyond_recovery,
        MORE,
        exploratory=("cifar10",),
    ),
    Claim(
        "no_speed",
        "Keeping the first one or two modules brings no speed, within 10 %.",
        "Figure 11",
        "reset",
        direction=SAME,
        margin=math.log(1.1),
        unit="log ratio of epochs",
        effect=_speed_with_first_modules,
    ),
    Claim(
        "rate_shrinks",
        "A ten times larger rate in tuning shrinks the gap.",
        "Figure 7",
        "two_phases",
        _rate_effect,
        MORE,
    ),
    Claim(
        "rate_not_enough",
        "A larger rate alone does not close the gap.",
        "Figure 7",
        "two_phases",
        _gap_at_a_larger_rate,
    ),
    Claim(
        "less_noise",
        "Early in tuning, a warm start has less gradient noise than a fresh network.",
        "section 3",
        "probes",
        unit="log ratio",
        effect=_early_noise,
    ),
    Claim(
        "sharper",
        "At equal training loss, the minimum that a warm start ends in is sharper.",
        "section 3",
        "probes",
        direction=MORE,
        unit="log ratio",
        effect=_sharpness,
    ),
)


def of(study: str) -> list[Claim]:
    """The claims that a study decides."""
    return [claim for claim in CLAIMS if claim.study == study]


def scorecard(profile: Profile) -> dict[str, Verdict]:
    """The verdict on every claim by its id, from what is recorded at a profile; trains nothing."""
    return _judged(*_place(profile))


def _place(profile: Profile) -> tuple[Profile, Path, tuple]:
    """The profile, the folder of its records, and their stamp."""
    store = Store.of(profile.name)
    return profile, store.folder, store.stamp()


@lru_cache(maxsize=32)  # a chapter asks many times
def _judged(profile: Profile, folder: Path, stamp: tuple) -> dict[str, Verdict]:
    """The scorecard of the records that a folder holds, by its stamp."""
    results = _recorded(profile, folder, stamp)
    return {v.claim.id: v for v in verdicts((claim, results.get(claim.study)) for claim in CLAIMS)}


@lru_cache(maxsize=32)
def _recorded(profile: Profile, folder: Path, stamp: tuple) -> dict[str, Results]:
    """The results of all studies from the records that a folder holds, by its stamp; none from no record."""
    return {name: sweep.results(study, profile) for name, study in STUDIES.items() if stamp}


def at_each_scale() -> dict[str, dict[str, Verdict]]:
    """The scorecard of every named profile of which something is recorded, the largest first."""
    names = [*LARGEST_FIRST, *(name for name in PROFILES if name not in LARGEST_FIRST)]
    cards = {name: scorecard(PROFILES[name]) for name in names}
    return {name: card for name, card in cards.items() if any(v.effect.n for v in card.values())}


def best() -> dict[str, Verdict]:
    """The verdict on every claim at the largest scale of which all planned seeds are recorded.

    Which scale that is depends on what is recorded, never on what came out.
    """
    places = {name: _place(PROFILES[name]) for name in LARGEST_FIRST}
    cards = [_judged(*place) for place in places.values()]
    chosen = []
    for claim in CLAIMS:
        found = [card[claim.id] for card in cards]
        whole = [verdict for verdict in found if verdict.verdict in DECIDED]
        begun = [verdict for verdict in found if verdict.effect.n or verdict.verdict == "not tested"]
        profile = next(iter([*whole, *begun, *found])).profile
        chosen.append((claim, _recorded(*places[profile]).get(claim.study) if profile else None))
    return {v.claim.id: v for v in verdicts(chosen)}
