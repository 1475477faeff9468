"""What the chapters have in common: figure format, and the numbers and words that the text shows.

A sentence that depends on the outcome is made here, so that a page is right whatever its records say.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from repro import power, scorecard
from repro.analysis.claims import ALPHA, FEWEST_SEEDS, VERDICTS, Claim, Verdict
from repro.analysis.curves import epochs_to_reach, in_last_stage
from repro.analysis.recorded import Results
from repro.analysis.stats import Estimate, between, mean_estimate, signed
from repro.config import MODULES
from repro.profiles import PROFILES, Profile
from repro.questions import CLAIMS, STUDIES, claims_of
from repro.questions.reset import SPEED_AT, main_effects, subsets_recorded
from repro.study import FRESH, WARM, reset_condition

DIFFERENCE = "Test accuracy less that of fresh networks, points"  # of fresh ones at other rates too
MOST_NAMES = 6  # in a sentence; of more, their number is given
SPLITS = ("test", "train")


def prepare() -> None:
    """Draw figures as SVG, the same bytes for the same records; the first, for links, as PNG too.

    PNG only where the pages have an address that a link could name (`pages.published`).
    """
    mpl.rcParams["svg.hashsalt"] = "repro"
    _draw_as("svg", *(["png"] if os.environ.get("BOOK_URL") else []))


def _draw_as(*formats: str) -> None:
    """The page whole, as its layout made it: to find the ink on it would take a second drawing."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats(*formats, metadata={"Date": None, "Creator": None}, bbox_inches=None)


def show(**values: object) -> None:
    """Make values available to the text of the page by name, in `{glue:text}` and `{glue:figure}`."""
    from myst_nb import glue

    for name, value in values.items():
        glue(name, value if isinstance(value, Figure) else str(value), display=False)
        if isinstance(value, Figure):
            _draw_as("svg")


# What a caption states


def provenance(results: Results, prefix: str = "") -> dict[str, str]:
    """What a caption states: runs, seeds, profile, data set, network, training, device.

    `prefix` tells the names of a second study on the same page apart.
    """
    table, profile = results.table, results.profile
    missing = f" ({results.missing} more are not recorded yet)" if results.missing else ""
    images = {
        n: "all" if getattr(profile, n) is None else f"{getattr(profile, n):,}" for n in ("train", "test")
    }
    found = {
        "profile": profile.name,
        "runs": f"{len(table)} run{'s' * (len(table) != 1)}{missing}",
        "seeds": str(table.seed.nunique()),
        "dataset": Path(profile.dataset).name,
        "images": f"{images['train']} training and {images['test']} test images",
        "width": str(profile.width),
        "depth": str(profile.depth),
        "batch_size": str(profile.batch_size),
        "learning_rate": f"{profile.learning_rate:g}",
        "pretraining_epochs": str(profile.pretraining_epochs),
        "tuning_epochs": str(profile.tuning_epochs),
        "window": str(profile.window),
        "device": ", ".join(sorted(table.device.unique())) or "no device",
        "precision": ", ".join(sorted(table.precision.unique())) or "no precision",
        "diverged": _diverged(table) + _unrecorded(results),
    }
    found["budget"] = (
        "data set {dataset} ({images}), a ResNet of width {width} with {depth} block{s} per module, batches "
        "of {batch_size}, {pretraining_epochs} epochs of pretraining and {tuning_epochs} of tuning at "
        "learning rate {learning_rate}, in {precision} on {device}"
    ).format(**found, s="s" * (profile.depth != 1))
    return {prefix + name: value for name, value in found.items()}


def _diverged(table: pd.DataFrame) -> str:
    n = int(table.diverged.sum())
    if not n:
        return "No run diverged"
    return (
        f"{n} of the {len(table)} runs ended early with a loss that was no longer finite; "
        "they count with the accuracies they had"
    )


def _unrecorded(results: Results) -> str:
    """A second sentence, where runs are missing: how many, and what records them."""
    if not results.missing:
        return ""
    command = f"repro run {results.study.name} --profile {results.profile.name}"
    return f". {results.missing} runs of this study are not recorded yet: {command} trains them"


# Verdicts


def readings(profile: Profile, study: str) -> dict[str, str]:
    """What the whole scorecard says of each claim that a study decides, by the claim's id."""
    card = scorecard.scorecard(profile)
    return {claim.id: str(card[claim.id]) for claim in claims_of(study)}


def tally(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """How many claims got each verdict, and which ones, as `reproduced` and `reproduced_claims`."""
    found = {word: [] for word in VERDICTS}
    for verdict in verdicts:
        found[verdict.verdict].append(verdict.claim.words)
    words = {word.replace(" ", "_"): claims for word, claims in found.items()}
    return {name: str(len(claims)) for name, claims in words.items()} | {
        f"{name}_claims": " ".join(claims) or "None." for name, claims in words.items()
    }


def claims_table(verdicts: Iterable[Verdict]):
    """A row per claim: the paper's words and figure, our chapter, the verdict and its numbers."""
    rows = [
        {
            "claim": f"{v.claim.words} {_source(v.claim)}",
            "verdict": v.verdict,
            "effect, 95 % interval": _with_unit(v.effect, v.claim.unit),
            "seeds": f"{v.effect.n} of {v.planned}, {_unbroken(v.profile)}" if v.effect.n else "",
            "p": _unbroken(escape(v.p_text)),
        }
        for v in verdicts
    ]
    return whole(pd.DataFrame(rows), classes="claims")


def claims_by_scale(cards: Mapping[str, Mapping[str, Verdict]]):
    """A row per claim and a column per profile: verdict, effect with its interval, and seeds."""
    rows = [
        {"claim": claim.words} | {name: _brief(card[claim.id]) for name, card in cards.items()}
        for claim in CLAIMS
    ]
    return whole(pd.DataFrame(rows), classes="claims")


def _brief(verdict: Verdict) -> str:
    if not verdict.effect.n:
        return verdict.verdict
    return f"{verdict.verdict}: {_with_unit(verdict.effect, verdict.claim.unit)}, n = {verdict.effect.n}"


def power_table():
    """The smallest effect that the planned seeds of each scale find, a row per claim on accuracies."""
    rows = {}
    for name in ("cifar10-small", "cifar10"):
        for row in power.table(PROFILES[name]).itertuples():
            found = f"{row.detectable:.2f} {row.unit} ({row.seeds} seeds)"
            rows.setdefault(row.claim, {"claim": row.claim})[f"smallest effect found, {name}"] = found
    return whole(pd.DataFrame(list(rows.values())))


def _source(claim: Claim) -> str:
    """The paper's figure and a link to our chapter, in HTML."""
    name = STUDIES[claim.study].chapter
    ours = _unbroken(f"chapter {int(name[:2])}")
    return f'<i>{_unbroken(claim.figure)}</i>, <a href="{name}.html">{ours}</a>'


def _with_unit(effect: Estimate, unit: str) -> str:
    """As in `-5.8 points (-7.4 to -4.2)`; nothing where no seed is recorded."""
    interval = f" ({_unbroken(between((effect.low, effect.high)))})" if effect.n > 1 else ""
    return f"{signed(effect.mean)} {unit}{interval}" if effect.n else ""


def _unbroken(words: str) -> str:
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def whole(table: pd.DataFrame, classes: str | None = None):
    """A table for the page, with its texts whole, its links live and no row numbers."""
    from IPython.display import HTML

    with pd.option_context("display.max_colwidth", None):
        return HTML(table.to_html(index=False, escape=False, border=0, justify="left", classes=classes))


def demands(profile: Profile) -> dict[str, str]:
    """What it takes to pass the scorecard's first step: its level, and how many seeds there are for it."""
    return {
        "claims": str(len(CLAIMS)),
        "alpha": f"{ALPHA:g}",
        "first_level": f"{ALPHA / len(CLAIMS):g}",
        "fewest_seeds": str(FEWEST_SEEDS),
        "study_seeds": str(profile.study_seeds),
    }


# Numbers and words of a figure


def means(table: pd.DataFrame) -> dict[str, str]:
    """Mean accuracies of fresh networks and warm starts, in percent, as `fresh_test`, `warm_start_train`."""
    of = {
        (c, split): table[table.condition == c][f"{split}_accuracy"]
        for c in (FRESH, WARM)
        for split in SPLITS
    }
    return {
        f"{condition.replace(' ', '_')}_{split}": f"{100 * x.mean():.1f}" if len(x) else "(not recorded)"
        for (condition, split), x in of.items()
    }


def accuracies(table: pd.DataFrame, *by: str):
    """Mean test and train accuracy in percent, a row for each value of the factors and condition."""
    found = table.groupby([*by, "condition"], sort=False, dropna=False)
    shown = (100 * found[["test_accuracy", "train_accuracy"]].mean()).map("{:.1f}".format)
    shown.columns = ["test accuracy, %", "train accuracy, %"]
    shown = shown.assign(runs=found.size()).reset_index()
    for name in by:
        shown[name] = shown[name].map(_factor)
    return whole(shown.rename(columns=lambda name: name.replace("_", " ")))


def _factor(value: object) -> str:
    """A value of a factor as the text shows it, empty where the condition lacks the factor."""
    return value if isinstance(value, str) else "" if np.isnan(value) else f"{value:g}"


def groups(gap: pd.DataFrame, by: str | Sequence[str], name: str = "") -> dict[str, Estimate]:
    """Mean gap with interval of each value of one or more factors, named as `name` says: "{} epochs".

    Runs of one seed are averaged first: seeds are what is independent.
    """
    by = [by] if isinstance(by, str) else list(by)
    name = name or " ".join(["{}"] * len(by))
    if not set(by) <= set(gap.columns):  # a study that this profile does not have
        return {}
    known = gap.dropna(subset=by)
    found = known.groupby(by, sort=all(pd.api.types.is_numeric_dtype(known[factor]) for factor in by))
    return {
        name.format(*map(_factor, key)): mean_estimate(part.groupby("seed").gap.mean()) for key, part in found
    }


def on_test_images(gap: pd.DataFrame) -> pd.DataFrame:
    """The gaps on test images, without those on held-out training images."""
    return gap[~gap.held_out.astype(bool)] if "held_out" in gap else gap


def listed(estimates: Mapping[str, Estimate]) -> str:
    """The mean of each: `−9.8 for Adam, −7.1 for RMSprop and +0.3 for SGD`."""
    return enumerated([f"{signed(e.mean)} for {name}" for name, e in estimates.items()] or ["not recorded"])


def extremes(estimates: Mapping[str, Estimate]) -> str:
    """The lowest and the highest mean: `lowest for Adam (−9.8) and highest for SGD (+0.3)`."""
    by_mean = sorted(estimates, key=lambda name: estimates[name].mean)
    if len(by_mean) < 2:
        return listed(estimates)
    low, high = (f"{name} ({signed(estimates[name].mean)})" for name in (by_mean[0], by_mean[-1]))
    return f"lowest for {low} and highest for {high}"


def sides(estimates: Mapping[str, Estimate]) -> str:
    """Where the intervals lie: `below zero for Adam, and on both sides of zero for RMSprop and SGD`."""
    found = {side: [name for name, e in estimates.items() if side_of(e) == side] for side in _SIDES}
    said = [
        f"{side} for {_named_or_counted(names, len(estimates))}" for side, names in found.items() if names
    ]
    return ", and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said) or "nowhere yet"


def _named_or_counted(names: Sequence[str], of: int) -> str:
    if len(names) == of > 1:
        return f"all {of}"
    return enumerated(names) if of <= MOST_NAMES else f"{len(names)} of {of}"


BELOW, ABOVE, AROUND, UNKNOWN = _SIDES = (
    "below zero",
    "above zero",
    "on both sides of zero",
    "nowhere (with one seed)",
)


def side_of(estimate: Estimate) -> str:
    """Where the interval lies; nowhere with fewer than two seeds."""
    if np.isnan(estimate.low):
        return UNKNOWN
    return BELOW if estimate.high < 0 else ABOVE if estimate.low > 0 else AROUND


def enumerated(items: Sequence[str]) -> str:
    """As in `a, b and c`, or `a; b, c; and d` where an item has a comma of its own."""
    items = list(items)
    if any("," in item for item in items) and len(items) > 1:
        return "; ".join([*items[:-1], f"and {items[-1]}"])
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items) or "none"


def contrast(results: Results, first: str, second: str) -> Estimate:
    """Test accuracy under the first condition minus that under the second, in points, paired by seed."""
    by = 100 * results.table.pivot_table(index="seed", columns="condition", values="test_accuracy")
    return mean_estimate((by[first] - by[second]).dropna() if {first, second} <= set(by) else [])


# Of single chapters


def gammas(results: Results) -> list[float]:
    """The speeds of transition that the study asks for, recorded or not."""
    factors = (case.factors for case in results.study.cases(results.profile))
    return sorted({f["gamma"] for f in factors if "gamma" in f})


def half_way(results: Results) -> str:
    """Epochs after which every second example comes from all of the data, for the extreme gammas."""
    epochs = results.profile.tuning_epochs
    found = {gamma: epochs * np.log(0.5) / np.log(gamma) / 50 for gamma in gammas(results)}
    return enumerated([f"{found[g]:.2g} epochs (γ = {g:g})" for g in (min(found), max(found))])


def fitting(curves: pd.DataFrame, level: float, *by: str) -> str:
    """How many stages before the last, of runs told apart by factors, reached this accuracy: `12 of 18`."""
    run = ["condition", "seed", *by]
    early = curves[~in_last_stage(curves, run)]
    reached = early.groupby([*run, "stage"]).train_accuracy.max() >= level
    return f"{reached.sum()} of {len(reached)}"


def last_reset(gap: pd.DataFrame) -> pd.DataFrame:
    """The gaps of runs with the last k modules re-initialised, k = `last`, from none to all six."""
    names = [reset_condition(MODULES[6 - k :]) for k in range(7)]
    order = {name: k for k, name in enumerate(names)}
    chosen = gap[gap.condition.isin(names)]
    return chosen.assign(last=chosen.condition.map(order)).sort_values(["last", "seed"])


def first_kept(conditions: Collection[str]) -> list[str]:
    """Fresh, the first one to five modules kept, and the warm start, as far as they are recorded."""
    names = [FRESH, *(reset_condition(MODULES[k:]) for k in range(1, 6)), WARM]
    return [name for name in names if name in set(conditions)]


def speed(curves: pd.DataFrame, conditions: Sequence[str], level: float = SPEED_AT) -> str:
    """Mean epochs of tuning until a train accuracy is reached: `4.3 for fresh; never for reset 6`."""
    epochs = epochs_to_reach(curves, level)
    by_condition = {name: epochs[epochs.condition == name].epochs for name in conditions}
    there = {name: found.dropna() for name, found in by_condition.items() if found.notna().any()}
    said = [
        f"{found.mean():.1f} for {name}"
        + (f" (in {len(found)} of {n} runs)" if len(found) < (n := len(by_condition[name])) else "")
        for name, found in there.items()
    ]
    never = [name for name in by_condition if name not in there]
    if not there:
        return "no run got there"
    return "; ".join([*said, *([f"never for {enumerated(never)}"] if never else [])])


def contributed(gap: pd.DataFrame) -> str:
    """What re-initialising each module contributes, or how many of the 64 subsets that takes are there."""
    effects = main_effects(gap)
    if effects.empty:
        return f"Only {subsets_recorded(gap)} of the 64 subsets of modules are recorded here"
    by_module = effects.groupby("module").value
    said = listed({f"module {module}": mean_estimate(values) for module, values in by_module})
    return f"The main effect is {said} percentage points"


def probe_ratios(table: pd.DataFrame, probe: str) -> str:
    """Warm over fresh, geometric mean over seeds: `0.81 after 1 epoch of tuning and 0.95 after 2`."""
    if probe not in table:
        return "not recorded"
    by = table.pivot_table(index=["seed", "tuning_epochs"], columns="condition", values=probe)
    ratios = np.exp(np.log(by[WARM] / by[FRESH]).groupby("tuning_epochs").mean().dropna())
    return enumerated([f"{ratio:.2f} after {n:g}" for n, ratio in ratios.items()])
