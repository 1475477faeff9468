"""Which modules must be re-initialised? (Figures 6 and 11)"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from repro.analysis.claims import MORE, SAME, Arms, claim
from repro.analysis.curves import LEVELS, epochs_to_reach
from repro.analysis.recorded import Results
from repro.config import MODULES
from repro.figures import style
from repro.figures.shown import Captioned, Words, captioned, enumerated, listed
from repro.figures.style import GAP, GREY, bar, blank, colour, estimate, known, line, marker, message, styled
from repro.lazy import Lazy
from repro.profiles import module_numbers
from repro.scales import Profile
from repro.study import FRESH, LAST, WARM, Arm, Explored, Study, crossed, pretraining, reset_condition, tuning

np, pd = Lazy("numpy"), Lazy("pandas")

SPEED_AT = 0.9  # train accuracy for which a caption gives mean epochs
SPEED_LEVELS = (0.8, 0.9, 0.95)  # train accuracies at which the claim on speed is tested
RECOVERED = 0.8  # share of the gap that a reset has to close to count as recovery
SUBSETS = tuple("".join(map(str, s)) for k in range(7) for s in itertools.combinations(MODULES, k))
_REST = len(MODULES) - 1  # modules besides the one in question


def last_resets(every: Sequence[int]) -> list[str]:
    """Condition in which the last k modules are re-initialised, by k; `every` has all modules' numbers."""
    return [reset_condition(every[len(every) - k :]) for k in range(len(every) + 1)]


# The claims are about the paper's six modules: other networks have no runs of all these conditions.
LAST_RESET = last_resets(MODULES)


def subsets_to_reset(profile: Profile) -> list[tuple[int, ...]]:
    """Sets of modules to re-initialise, including the empty set.

    With `least`, the last k for each k; with `full_grids`, all subsets of up to six
    modules (64 of six); otherwise the first k, the last k, and each module alone.
    """
    every = module_numbers(profile)
    counts = range(len(every) + 1)
    if profile.least:
        return [every[len(every) - k :] for k in counts]
    if profile.full_grids and len(every) <= len(MODULES):
        return [s for k in counts for s in itertools.combinations(every, k)]
    ends = [s for k in counts for s in (every[:k], every[len(every) - k :])]
    return list(dict.fromkeys([*ends, *((m,) for m in every)]))


@crossed
def reset(profile: Profile) -> Iterator[Arm]:
    """Warm starts with some modules re-initialised before tuning."""
    yield Arm(FRESH, (tuning(profile),))
    every = module_numbers(profile)
    last = [every[-k:] for k in (1, 2, 3, 4, 5)]
    between = "" if max(every, default=0) < 10 else " "
    for modules in subsets_to_reset(profile):
        stages = pretraining(profile), tuning(profile, reset=modules)
        factors = {"modules": between.join(map(str, modules))}
        priority = 2 if modules in last else LAST
        yield Arm(reset_condition(modules), stages, factors, priority=priority)


@claim("Re-initialising the last one or two modules is not enough.", "Figure 6", "reset")
def small_reset(arm: Arms) -> dict[object, pd.Series]:
    return {k: arm(LAST_RESET[k]) - arm(FRESH) for k in (1, 2)}


@claim(
    "Re-initialising the last four or five modules recovers, closing four fifths of the gap or more.",
    "Figure 6",
    "reset",
    direction=MORE,
    exploratory=("cifar10",),
)
def deep_reset(arm: Arms) -> dict[object, pd.Series]:
    needed = RECOVERED * (arm(FRESH) - arm(WARM))
    return {k: arm(LAST_RESET[k]) - arm(WARM) - needed for k in (4, 5)}


@claim(
    "Keeping the first one or two modules brings no speed, within 10 %.",
    "Figure 11",
    "reset",
    "effect",
    direction=SAME,
    margin=math.log(1.1),
    unit="log ratio of epochs",
)
def no_speed(results: Results) -> pd.DataFrame:
    """Log ratio of epochs to reach a level, reset over fresh; mean of `SPEED_LEVELS`.

    A column each for one and two modules kept; NaN if a level is not reached.
    """
    found = 0.0
    for level in SPEED_LEVELS:
        epochs = epochs_to_reach(results.curves, level).pivot(
            index="seed", columns="condition", values="epochs"
        )
        found += pd.DataFrame(
            {f"{6 - k} kept": np.log(epochs[LAST_RESET[k]] / epochs[FRESH]) for k in (5, 4)}
        )
    return found / len(SPEED_LEVELS)


def main_effects(gaps: pd.DataFrame) -> pd.DataFrame:
    """Main effect of each module: mean gap with it re-initialised less that without.

    Takes `Results.gaps` of the reset study. Columns are seed, module and `value`, in
    points, positive if re-initialising the module helps. Seeds with fewer than all 64
    subsets are left out.
    """
    return _averaged(gaps, lambda size: 1 / 2**_REST)


def shapley(gaps: pd.DataFrame) -> pd.DataFrame:
    """Shapley value of each module: its effect averaged over all orders of the six.

    Input and columns as in `main_effects`, but the six values of a seed sum to the
    gap with all modules re-initialised less that with none.
    """
    return _averaged(gaps, lambda size: 1 / (len(MODULES) * math.comb(_REST, size)))


def _by_subset(gaps: pd.DataFrame) -> pd.DataFrame:
    """The gap by seed (rows) and subset (64 columns), NaN if not recorded."""
    if gaps.empty:
        return pd.DataFrame(columns=SUBSETS, dtype=float)
    return gaps.pivot(index="seed", columns="modules", values="gap").reindex(columns=SUBSETS)


def _averaged(gaps: pd.DataFrame, weight: Callable[[int], float]) -> pd.DataFrame:
    """Sum over S of weight(len(S)) * (gap(S + module) - gap(S)) by seed and module."""
    games = _by_subset(gaps).dropna()
    weights = np.array(
        [[weight(len(s) - 1) if str(m) in s else -weight(len(s)) for m in MODULES] for s in SUBSETS]
    )
    values = pd.DataFrame(games.to_numpy(float) @ weights, games.index, MODULES)
    long = values.rename_axis(index="seed", columns="module").stack().rename("value").reset_index()
    return long.astype({"module": int, "value": float})


def _panels(gap: pd.DataFrame, every: Sequence[int]) -> dict[str, dict[int, str]]:
    """Conditions by k of each panel: "Last k", and those that add a recorded one."""
    panels = {
        "First k": {k: reset_condition(every[:k]) for k in range(len(every) + 1)},
        "Last k": dict(enumerate(last_resets(every))),
        "Only k": {k: reset_condition((k,)) for k in every},
    }
    told = set(gap.condition) - set(panels["Last k"].values())
    return {name: of for name, of in panels.items() if name == "Last k" or told & set(of.values())}


@styled
def reset_gaps(gap: pd.DataFrame, every: Sequence[int] = MODULES) -> style.mpl.Figure:
    """Gap after re-initialising the first k, last k, and single modules (Figure 6).

    `every` has the numbers of all modules of the network. k = 0 is the warm start; in the
    panel of single modules its mean is a dashed line.
    """
    gap = known(gap, "condition", "gap")
    if gap.empty:
        return message()
    panels = _panels(gap, every)
    figure, axes = blank(1, len(panels), height=4.0, sharey=True, squeeze=False)
    for ax, (name, chosen) in zip(axes[0], panels.items(), strict=True):
        values = {k: gap[gap.condition == condition].gap for k, condition in chosen.items()}
        means = {k: estimate(v) for k, v in values.items() if len(v)}
        if name != "Only k":
            # NaN breaks the line at a k that is not recorded.
            line = [means[k].mean if k in means else np.nan for k in chosen]
            ax.plot(list(chosen), line, color="#b3b3b3", zorder=1)
        elif len(none := gap[gap.condition == WARM]):
            ax.axhline(none.gap.mean(), color=colour(WARM), ls="--")
        for k, found in means.items():
            shade = colour(chosen[k])
            ax.plot([k] * found.n, values[k], "o", color=shade, alpha=0.35, ms=4.5, mew=0)
            bar(ax, k, found, shade)
            ax.plot(k, found.mean, marker(chosen[k]), color=shade, ms=8, mec="white")
        ax.axhline(0, color=GREY, lw=1)
        ax.set_title(name, fontsize="medium")
        ax.set_xlim(-0.5 if name != "Only k" else 0.5, len(every) + 0.5)
        ax.set_xticks(list(chosen))
        ax.grid(axis="x", visible=False)
    axes[0, 0].set_ylabel(GAP)
    figure.supxlabel(f"Modules re-initialised ({every[-1]}: the last layer)", fontsize="medium")
    return figure


@styled
def contributions(gap: pd.DataFrame) -> style.mpl.Figure:
    """Main effect and Shapley value of re-initialising each module, in points."""
    accounts = {"main effect": main_effects(gap), "Shapley value": shapley(gap)}
    figure, ax = blank(height=4.0)
    for (name, found), shade, hatch, side in zip(
        accounts.items(), ("#8C3A68", "#E3B5CF"), ("", "//"), (-0.2, 0.2), strict=True
    ):
        for module, part in found.groupby("module"):
            value = estimate(part.value)
            label = name if module == 1 else None
            ax.bar(module + side, value.mean, 0.38, color=shade, hatch=hatch, ec="white", label=label)
            bar(ax, module + side, value, "#1a1a1a", lw=1.5)
    ax.axhline(0, color=GREY, lw=1)
    ax.set_xlabel("Module re-initialised (1: first convolution, 6: last layer)")
    ax.set_ylabel("Contribution to the gap, points\n(above 0: resetting it helps)")
    ax.grid(axis="x", visible=False)
    style.legend(figure, ax)
    return figure


@styled
def speed(curves: pd.DataFrame, conditions: Iterable[str]) -> style.mpl.Figure:
    """Epochs of the last stage until train accuracy reaches each of `LEVELS` (Figure 11).

    A hollow marker is the mean over the seeds that reached the level, if not all did.
    """
    conditions = [name for name in conditions if name in set(curves.condition)]
    if not conditions:
        return message()
    curves = curves[curves.condition.isin(conditions)]
    reached = (epochs_to_reach(curves, level).assign(level=i) for i, level in enumerate(LEVELS))
    found = pd.concat(reached, ignore_index=True)
    if found.epochs.isna().all():
        return message(f"No run reached a train accuracy of {100 * min(LEVELS):g} %")
    figure, ax = blank(height=4.4)
    hollow = False
    for i, condition in enumerate(conditions):
        part = found[found.condition == condition]
        at = style.spread(i, len(conditions), found.level)[part.index]
        whole, look = part.dropna(), (colour(condition), marker(condition))
        if whole.empty:
            continue
        line(ax, whole, "level", "epochs", *look, condition, at=at[whole.index])
        some = whole[whole.level.isin(part[part.epochs.isna()].level)]
        means = some.groupby(at[some.index]).epochs.mean()
        if len(means):
            hollow = True
            ax.plot(means.index, means, look[1], mfc="white", mec=look[0], ms=8, mew=1.5)
    ax.set_xticks(range(len(LEVELS)), [f"{100 * level:g}" for level in LEVELS])
    ax.set_ylim(0)
    ax.yaxis.get_major_locator().set_params(integer=True)
    note = "\n(hollow: not every seed reached it)" if hollow else ""
    ax.set_xlabel("Train accuracy reached, %" + note)
    ax.set_ylabel("Epochs of tuning")
    style.legend(figure, ax)
    return figure


def last_reset(results: Results) -> pd.DataFrame:
    """Gaps with the last k modules re-initialised; the column `last` is k, from 0 to all of them."""
    last = last_resets(module_numbers(results.profile))
    chosen = results.gaps[results.gaps.condition.isin(last)]
    return chosen.assign(last=chosen.condition.map(last.index)).sort_values(["last", "seed"])


def found(results: Results) -> Words:
    """The gap by number of last modules re-initialised, in words."""
    said = listed(last_reset(results), "last", "{}")
    return Words(f"The mean gap by number of last modules re-initialised is {said}.")


def gaps(results: Results) -> Captioned | Words:
    """Gap after re-initialising the first k, last k, and single modules (Figure 6)."""
    words = {"First k": "the first k modules", "Last k": "the last k", "Only k": "module k alone"}
    every = module_numbers(results.profile)
    panels = enumerated(words[name] for name in _panels(results.gaps, every))
    caption = (
        f"Generalisation gap after re-initialising {panels}, as in the paper's Figure 6: dots are seeds, "
        "markers their mean, bars its 95 % interval."
    )
    if "module k" in panels:
        caption += " The dashed line is the warm start with nothing re-initialised."
    return captioned(reset_gaps(results.gaps, every), results, "fig-resets", caption, found(results))


def shares(results: Results) -> Captioned | Words:
    """What each module contributes, or a sentence if no seed has all 64 subsets."""
    effects = main_effects(results.gaps)
    if effects.empty:
        recorded = max(_by_subset(results.gaps).notna().sum(axis=1), default=0)  # of the seed with most
        return Words(
            f"{recorded} of the 64 subsets of modules are recorded here; the "
            "contribution of a module needs them all: `repro run reset --set full_grids=true`."
        )
    caption = (
        "What re-initialising each module adds to the gap, averaged over all subsets of the others (main "
        "effect) and over all orders in which the six can be re-initialised (Shapley value)."
    )
    said = listed(effects.rename(columns={"value": "gap"}), "module", "module {}")
    return captioned(contributions(results.gaps), results, "fig-shares", caption, f"Main effect: {said}.")


def speeds(results: Results) -> Captioned | Words:
    """Epochs of tuning to each train accuracy, with first modules kept (Figure 11)."""
    kept = [FRESH, *last_resets(module_numbers(results.profile))[-2:0:-1], WARM]
    epochs = epochs_to_reach(results.curves, SPEED_AT)
    means = epochs.groupby("condition").epochs.mean().reindex(kept)
    said = enumerated([f"{n:.1f} for {name}" for name, n in means.items() if n == n])
    caption = (
        "Epochs of tuning until the train accuracy first reaches a level, as in the paper's Figure 11, "
        "with the first modules kept and the others re-initialised: dots are seeds, markers their mean, "
        f"bars its 95 % interval. Mean epochs to {100 * SPEED_AT:g} %: {said}."
    )
    return captioned(speed(results.curves, kept), results, "fig-speed", caption, caption)


def _in_words(modules: str) -> str:
    """A set of modules in words: "456" is `modules 4, 5 and 6 re-initialised`."""
    if len(modules) in (0, len(MODULES)):
        return "all six modules re-initialised" if modules else "no module re-initialised"
    return f"module{'s' * (len(modules) > 1)} {enumerated(modules)} re-initialised"


STUDIES = (
    Study(
        "reset",
        "Which modules must be re-initialised?",
        "Figures 6, 11",
        "07_reset",
        reset,
        explored=(
            Explored(
                "modules",
                "The network, from image to classes: tick the modules to re-initialise",
                _in_words,
                "boxes",
                dict(zip("123456", ("first convolution", *["blocks"] * 4, "last layer"), strict=True)),
                start="456",
                wider={"full_grids": True},
            ),
        ),
    ),
)
CLAIMS = (small_reset, deep_reset, no_speed)
