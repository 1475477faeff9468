"""The paper's claims, each with the contrast it makes, and the verdict of a profile's records on all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd

from repro import sweep
from repro.claims import LESS, MORE, SAME, Claim, Verdict, verdicts
from repro.config import MODULES
from repro.profiles import Profile
from repro.studies import FRESH, STUDIES, WARM, noise_epochs, reset_condition
from repro.sweep import Results

EARLY = (5, 10)  # epochs of pretraining after which, the paper says, a gap is there
SPEED_AT = 0.9  # train accuracy whose epoch is compared where modules are kept


def gap(results: Results, condition: str = WARM, **factors: object) -> pd.Series:
    """Generalisation gap of one condition by seed, with the factors given; their mean where several match."""
    found = results.gaps
    found = found[found.condition == condition]
    for name, value in factors.items():
        found = found[found[name].isin(value if isinstance(value, tuple) else (value,))]
    return found.groupby("seed").gap.mean()


def gaps_by(results: Results, factors: Sequence[str]) -> pd.DataFrame:
    """Gap of the warm start by seed, one column for each combination of the factors."""
    found = results.gaps
    found = found[found.condition == WARM]
    return found.pivot_table(index="seed", columns=list(factors), values="gap").dropna()


def gaps_of(results: Results, conditions: Iterable[str]) -> pd.DataFrame:
    """Gap of several conditions by seed, a column each; empty where one is not recorded."""
    return pd.DataFrame({name: gap(results, name) for name in conditions}).dropna()


def slope(values: pd.DataFrame, x: str, y: str = "gap") -> pd.Series:
    """Least-squares slope of y along x within each seed."""
    fits = {
        seed: np.polyfit(part[x].astype(float), part[y], 1)[0]
        for seed, part in values.groupby("seed")
        if part[x].nunique() > 1
    }
    return pd.Series(fits, dtype=float)


def _growth_with_pretraining(results: Results) -> pd.Series:
    found = results.gaps
    return slope(found.assign(doublings=np.log2(found.pretraining_epochs.astype(float))), "doublings")


def _growth_with_stages(results: Results) -> pd.Series:
    found = results.gaps
    return slope(found[found.ratio == 1], "parts")


def _growth_with_imbalance(results: Results) -> pd.Series:
    found = results.gaps
    return slope(found[found.parts == 2].assign(imbalance=1 - found.ratio), "imbalance")


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
    epochs = epochs_to_reach(results.curves, SPEED_AT).pivot(
        index="seed", columns="condition", values="epochs"
    )
    kept = {k: reset_condition(MODULES[k:]) for k in (1, 2)}
    return pd.DataFrame({f"{k} kept": epochs[kept[k]] - epochs[FRESH] for k in kept}).dropna()


def _rate_effect(results: Results) -> pd.Series:
    return gap(results, "warm start, 10x") - gap(results)


def probe_ratio(results: Results, probe: str, epochs: Iterable[int]) -> pd.Series:
    """Logarithm of warm over fresh by seed, averaged over epochs of tuning."""
    chosen = results.table[results.table.tuning_epochs.isin(list(epochs))]
    by = chosen.pivot_table(index=["seed", "tuning_epochs"], columns="condition", values=probe)
    return np.log(by[WARM] / by[FRESH]).groupby("seed").mean()


def _early_noise(results: Results) -> pd.Series:
    return probe_ratio(results, "gradient_noise", noise_epochs(results.profile)[:3])


def _sharpness(results: Results) -> pd.Series:
    return probe_ratio(results, "sharpness", [results.profile.tuning_epochs])


def last(k: int) -> str:
    """Condition in which the last k modules are re-initialised."""
    return reset_condition(MODULES[6 - k :])


CLAIMS = (
    Claim(
        "gap",
        "Networks pretrained on half of the data generalise worse than fresh ones.",
        "Figure 1",
        "warm_start",
        gap,
    ),
    Claim(
        "fits_equally",
        "Both fit the training data equally well.",
        "Figure 1",
        "warm_start",
        _train_difference,
        SAME,
        1.0,
    ),
    Claim(
        "gap_adam", "The gap is there with Adam.", "Figure 2", "optimizers", partial(gap, optimizer="Adam")
    ),
    Claim(
        "gap_rmsprop",
        "The gap is there with RMSprop.",
        "Figure 8",
        "optimizers",
        partial(gap, optimizer="RMSprop"),
    ),
    Claim("gap_sgd", "The gap is there with SGD.", "Figure 9", "optimizers", partial(gap, optimizer="SGD")),
    Claim(
        "gap_momentum",
        "The gap is there with SGD with momentum.",
        "Figure 10",
        "optimizers",
        partial(gap, optimizer="SGD with momentum"),
    ),
    Claim(
        "grows_with_pretraining",
        "The gap grows with the length of pretraining.",
        "Figure 2",
        "pretraining_length",
        _growth_with_pretraining,
        unit="points per doubling",
        whole_seeds=True,
    ),
    Claim(
        "appears_early",
        "Five to ten epochs of pretraining suffice for a gap.",
        "Figure 2",
        "pretraining_length",
        partial(gap, pretraining_epochs=EARLY),
        whole_seeds=True,
    ),
    Claim(
        "survives_smoothness",
        "The gap survives a smooth transition.",
        "Figure 3",
        "smooth_transition",
        partial(gap, condition="smooth"),
        whole_seeds=True,
    ),
    Claim(
        "survives_short_transition",
        "Even a short smooth transition leaves a gap.",
        "Figure 3",
        "smooth_transition",
        partial(gap, condition="smooth", gamma=0.1),
    ),
    Claim(
        "grows_with_stages",
        "The gap grows with the number of stages.",
        "Figure 4",
        "stages",
        _growth_with_stages,
        unit="points per stage",
        whole_seeds=True,
    ),
    Claim(
        "grows_with_imbalance",
        "The gap grows with the imbalance of classes.",
        "Figure 4",
        "stages",
        _growth_with_imbalance,
        unit="points, uniform to pure",
        whole_seeds=True,
    ),
    Claim(
        "every_capacity",
        "The gap persists at every width and depth.",
        "Figure 5",
        "capacity",
        partial(gaps_by, factors=("width", "depth")),
        whole_seeds=True,
    ),
    Claim(
        "small_reset",
        "Re-initialising the last one or two modules is not enough.",
        "Figure 6",
        "reset",
        partial(gaps_of, conditions=(last(1), last(2))),
    ),
    Claim(
        "deep_reset",
        "Re-initialising the last four or five modules recovers.",
        "Figure 6",
        "reset",
        partial(gaps_of, conditions=(last(4), last(5))),
        SAME,
        1.0,
    ),
    Claim(
        "no_speed",
        "Keeping the first one or two modules brings no speed.",
        "Figure 11",
        "reset",
        _speed_with_first_modules,
        SAME,
        1.0,
        "epochs",
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
        partial(gap, condition="warm start, 10x"),
    ),
    Claim(
        "less_noise",
        "Early in tuning, a warm start has less gradient noise than a fresh network.",
        "section 3",
        "probes",
        _early_noise,
        LESS,
        unit="log ratio",
        whole_seeds=True,
    ),
    Claim(
        "sharper",
        "The minimum that a warm start ends in is sharper.",
        "section 3",
        "probes",
        _sharpness,
        MORE,
        unit="log ratio",
    ),
)


def of(study: str) -> list[Claim]:
    """The claims that a study decides."""
    return [claim for claim in CLAIMS if claim.study == study]


def scorecard(profile: Profile) -> dict[str, Verdict]:
    """The verdict on every claim by its id, from what is recorded at a profile; trains nothing."""
    results = {name: sweep.results(study, profile) for name, study in STUDIES.items()}
    return {verdict.claim.id: verdict for verdict in verdicts(results, CLAIMS)}
