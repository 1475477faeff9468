"""Claims of the paper as hypotheses, their tests over seeds, and the verdicts.

An arm is a condition of a study at one value of each factor, such as a learning rate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from repro.analysis.recorded import Results
from repro.analysis.stats import Estimate, holm, p_below, two_way_residuals
from repro.config import InputError
from repro.data import datasets
from repro.lazy import Lazy
from repro.study import FRESH, WARM

np, pd, special = Lazy("numpy"), Lazy("pandas"), Lazy("scipy.special")  # as in `repro.analysis.stats`

ALPHA = 0.05  # chance of any false "reproduced" on a scorecard, and of any false "contradicted"
FITTED = 0.99  # an arm of at least this mean train accuracy counts as fitted, as the paper's networks are
FEWEST_SEEDS = 3  # with fewer, a verdict is incomplete
PRIOR = 8  # most degrees of freedom that the pooled variance counts for when a claim's own is larger
SMALLEST_P = 0.0001  # p values below it print as < 0.0001
LESS, MORE, SAME = "less", "more", "same"
DECIDED = ("reproduced", "contradicted", "inconclusive")  # verdicts that need all planned seeds
NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan, math.nan, 0)
OPEN = (1.0, 1.0)  # p values for and against a claim that is not decided
VERDICTS = (*DECIDED, "not tested", "exploratory", "incomplete", "not run")


class NotFitted(Exception):
    """An arm does not fit its training data; the paper's claims are about networks that do."""


class NotPlanned(KeyError):
    """An arm that the study does not have at this profile."""

    __str__ = Exception.__str__  # that of a `KeyError` puts the message in quotes


class Arms:
    """Test accuracies of the arms of a study, in percent, with those on held-out images kept apart."""

    def __init__(self, results: Results) -> None:
        factors = [name for name in results.factors if name != "held_out"]
        table = results.table.assign(accuracy=100 * results.table.test_accuracy)
        table["arm"] = table.groupby(["condition", *factors], dropna=False).ngroup()
        held_out = table.held_out.astype(bool) if "held_out" in results.factors else table.seed < 0
        self.table, self.held_out = table[~held_out], table[held_out]
        self.columns = {name: self.table[name].to_numpy() for name in self.table}  # arrays: read many times
        self.used: set[int] = set()  # arms that were asked for
        self.planned = results.study.cases(results.profile)  # recorded or not
        self.missing = results.missing

    def only(self, arm: int) -> Arms:
        """A copy in which the accuracy of this arm is 1 at every seed, and that of all others 0."""
        changed = copy.copy(self)
        changed.columns = self.columns | {"accuracy": (self.columns["arm"] == arm).astype(float)}
        return changed

    def __call__(self, condition: str, **factors: object) -> pd.Series:
        """Accuracy of one arm by seed; raises `KeyError` if none is recorded, or `NotFitted`.

        The `KeyError` is a `NotPlanned` if none ever will be.
        """
        chosen = self.columns["condition"] == condition
        for name, value in factors.items():
            chosen &= self.columns.get(name) == value
        if not chosen.any():
            if any(c.condition == condition and factors.items() <= c.factors.items() for c in self.planned):
                raise KeyError(condition)
            same = [c for c in self.planned if c.condition == condition] or self.planned
            known = "; ".join(dict.fromkeys(in_words(c.condition, c.factors) for c in same))
            raise NotPlanned(f"no arm is {in_words(condition, factors)}: choose from {known}")
        fitted = pd.Series(self.columns["train_accuracy"][chosen]).mean()
        if fitted < FITTED:
            words = in_words(condition, factors)
            raise NotFitted(f"{words}: {100 * fitted:.1f} % of the training images fitted")
        self.used.update(self.columns["arm"][chosen])
        seeds = pd.Index(self.columns["seed"][chosen], name="seed")
        return pd.Series(self.columns["accuracy"][chosen], seeds)

    def best_rate(self, condition: str) -> object:
        """The rate with the highest mean accuracy on held-out images, of those at which the networks fit.

        Raises `NotFitted` if they fit at no rate, `KeyError` until all rates are recorded: the best of
        some would depend on which these are. It is a `NotPlanned` if the study has no such runs.
        """
        tried = self.held_out[self.held_out.condition == condition]
        planned = sum(c.run.dataset.held_out for c in self.planned if c.condition == condition)
        if not planned:
            raise NotPlanned(f"no arm {condition} is tested on held-out images")
        if len(tried) < planned:
            raise KeyError(condition)
        means = tried.groupby("rate")[["test_accuracy", "train_accuracy"]].mean()
        means = means[means.train_accuracy >= FITTED]
        if means.empty:
            raise NotFitted(f"{condition} at any rate")
        return means.test_accuracy.idxmax()

    def matrix(self, seeds: pd.Index) -> pd.DataFrame:
        """Accuracies [seed, arm] of all arms that fit their data and are recorded at each of these seeds."""
        fitted = self.table.groupby("arm").train_accuracy.transform("mean") >= FITTED
        return (
            self.table[fitted]
            .pivot_table(index="seed", columns="arm", values="accuracy")
            .loc[seeds]
            .dropna(axis=1)
        )


def in_words(condition: str, factors: Mapping[str, object]) -> str:
    """An arm in words: `stages, parts 2, ratio 1.0`."""
    return ", ".join([condition, *(f"{name} {value}" for name, value in factors.items())])


Contrast = Callable[[Arms], "pd.Series | Mapping[object, pd.Series]"]


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper as a statement about one number per seed.

    The claim says that this number is `less` or `more` than zero in expectation,
    or the `same` as zero up to `margin`. If the paper says it of several conditions,
    there is a number for each, and the claim has to hold for all of them. `contrast`
    gives a weighted sum of the accuracies of `Arms`, `effect` any other number; a claim has one of them.
    """

    id: str
    words: str
    figure: str
    study: str
    contrast: Contrast | None = None
    direction: str = LESS
    margin: float = 0.0
    unit: str = "points"
    effect: Callable[[Results], pd.Series | pd.DataFrame] | None = None
    exploratory: tuple[str, ...] = ()  # profiles whose records were seen before this claim was fixed

    def __post_init__(self) -> None:
        if self.direction not in (LESS, MORE, SAME):
            raise InputError(f"claim {self.id}: direction is less, more or same, not {self.direction!r}")
        if callable(self.contrast) == callable(self.effect):
            raise InputError(f"claim {self.id}: it needs a function, as contrast or as effect")


def claim(
    words: str, figure: str, study: str, kind: str = "contrast", **settings: object
) -> Callable[[Callable], Claim]:
    """Decorator that turns a function into a `Claim` with its name as id; `kind`: "contrast" or "effect"."""
    return lambda measure: Claim(measure.__name__, words, figure, study, **{kind: measure}, **settings)


@dataclass(frozen=True)
class Sample:
    """The numbers of a claim, one for each condition: means over seeds with their standard errors."""

    means: np.ndarray
    errors: np.ndarray
    freedom: np.ndarray  # degrees of freedom of each error
    seeds: int


@dataclass(frozen=True)
class Verdict:
    """What the records of one profile say about a claim.

    `verdict` is reproduced, contradicted or inconclusive; exploratory if the records
    were seen before the rule was made; incomplete while planned seeds are missing;
    not tested if networks do not fit their training data; not run without records.
    """

    claim: Claim
    verdict: str
    effect: Estimate = NO_ESTIMATE
    p: float = math.nan  # of the test that gave the verdict, adjusted for all claims
    profile: str = ""
    planned: int = 0  # number of seeds
    reason: str = ""  # why a claim is not tested

    @property
    def p_text(self) -> str:
        """For example `0.003`; `< 0.0001` if it is smaller than that, empty if there is none."""
        if math.isnan(self.p):
            return ""
        return f"{self.p:.2g}" if self.p >= SMALLEST_P else f"< {SMALLEST_P:g}"

    def as_json(self) -> dict:
        numbers = (self.effect.mean, self.effect.low, self.effect.high, self.p)
        mean, low, high, p = (float(v) if math.isfinite(v) else None for v in numbers)
        return {
            "id": self.claim.id,
            "claim": self.claim.words,
            "figure": self.claim.figure,
            "profile": self.profile,
            "verdict": self.verdict,
            "effect": mean,
            "interval": [low, high],
            "p": p,
            "unit": self.claim.unit,
            "n": self.effect.n,
            "planned": self.planned,
        }


def sample(claim: Claim, results: Results) -> Sample:
    """The claim's numbers, from the seeds at which everything that it needs is recorded, possibly none.

    The standard error of a contrast comes from the pooled variance of the arms of its
    study. If the contrast itself varies more, it comes from the mean of both variances,
    weighted by their degrees of freedom (a moderated t test: Smyth, 2004); the pooled
    one counts for those it has from other arms, at most `PRIOR`. An `effect` has its own
    variance alone. No standard deviation is taken to be less than one test image. Errors
    are NaN for fewer than two seeds. Raises `NotFitted` if networks do not fit their data.
    """
    floor = (100 if claim.unit.startswith("points") else 1) / datasets.counts(results.profile.data())[1]
    arms = None if claim.contrast is None else Arms(results)
    try:
        found = claim.effect(results) if arms is None else claim.contrast(arms)
    except KeyError:  # nothing is recorded of one of its arms
        found = ()
    values = pd.DataFrame(found).dropna()
    n = len(values)
    means = values.to_numpy(float).mean(0) if n else np.empty(0)
    if n < 2:
        return Sample(means, np.full(len(means), np.nan), np.zeros(len(means)), n)
    own = np.maximum(values.std(ddof=1).to_numpy(float), floor)
    spread, freedom = own, np.full(len(means), n - 1.0)
    if arms is not None:
        pooled, of_pooled = _pooled(claim.contrast, arms, values.index, floor)
        prior = max(0, min(PRIOR, of_pooled - (n - 1)))
        moderated = ((prior * pooled**2 + (n - 1) * own**2) / (prior + n - 1)) ** 0.5
        larger = own > pooled
        spread = np.where(larger, moderated, pooled)
        freedom = np.where(larger, prior + n - 1.0, of_pooled)
    return Sample(means, spread / n**0.5, freedom, n)


def _pooled(contrast: Contrast, arms: Arms, seeds: pd.Index, floor: float) -> tuple[np.ndarray, int]:
    """Standard deviation of each number of a contrast, from the spread of all fitted arms of its study.

    The spread is the residual of a two-way analysis of variance by arm and seed,
    whose degrees of freedom are returned as well.
    """
    residuals = two_way_residuals(arms.matrix(seeds).to_numpy())
    freedom = (residuals.shape[0] - 1) * (residuals.shape[1] - 1)
    shared = (np.square(residuals).sum() / max(freedom, 1)) ** 0.5
    return np.maximum(shared, floor) * np.square(weights(contrast, arms)).sum(0) ** 0.5, freedom


def weights(contrast: Contrast, arms: Arms) -> np.ndarray:
    """Weights [arm, number] of a contrast: its value if one arm has accuracy 1 and all others have 0."""
    contrast(arms)
    return np.array([pd.DataFrame(contrast(arms.only(arm))).max() for arm in sorted(arms.used)], float)


def p_values(claim: Claim, found: Sample) -> tuple[float, float]:
    """P values for and against the claim, from one-sided t tests.

    A claim of no difference is tested against both margins: the larger p value
    counts for it, twice the smaller one against it. Over several conditions, the
    largest p value counts for the claim, the smallest times their number against it.
    """
    pairs = []
    columns = zip(found.means, found.errors, found.freedom, strict=True)
    for mean, error, freedom in columns:
        x = -mean if claim.direction == MORE else mean
        below = partial(p_below, error=error, freedom=freedom)
        if claim.direction == SAME:
            m = claim.margin
            inside = max(below(x, bound=m), below(-x, bound=m))
            outside = min(below(x, bound=-m), below(-x, bound=-m))
            pairs.append((inside, 2 * outside))
        else:
            pairs.append((below(x, bound=0.0), below(-x, bound=0.0)))
    supporting, opposing = zip(*pairs, strict=True)
    return max(supporting), min(1.0, len(pairs) * min(opposing))


def verdicts(asked: Iterable[tuple[Claim, Results | None]]) -> list[Verdict]:
    """A verdict on every claim from the results of its study, with p values adjusted by Holm's method.

    All claims are one family. One that is not decided here stays in it with a p
    value of 1, so that the size of the family does not depend on what is recorded.
    """
    undecided = [_undecided(claim, results) for claim, results in asked]
    adjusted = [holm(side) for side in zip(*(pair for _, pair in undecided), strict=True)]
    decided = []
    for (verdict, _), support, against in zip(undecided, *adjusted, strict=True):
        if verdict.verdict == "inconclusive":
            word = "reproduced" if support < ALPHA else "contradicted" if against < ALPHA else "inconclusive"
            p = float(against if word == "contradicted" else support)
            verdict = replace(verdict, verdict=word, p=p)
        decided.append(verdict)
    return decided


def _undecided(claim: Claim, results: Results | None) -> tuple[Verdict, tuple[float, float]]:
    """The verdict, "inconclusive" if p values are to decide, and p values for and against, unadjusted."""
    if results is None or results.table.empty:
        return Verdict(claim, "not run"), OPEN
    made = Verdict(claim, "not run", profile=results.profile.name, planned=results.planned_seeds)
    try:
        found = sample(claim, results)
    except NotFitted as reason:
        return replace(made, verdict="not tested", reason=str(reason)), OPEN
    if not found.seeds:
        return made, OPEN
    made = replace(made, effect=_least_supporting(claim, found))
    if results.profile.exploratory or made.profile in claim.exploratory:
        return replace(made, verdict="exploratory"), OPEN
    if found.seeds < max(made.planned, FEWEST_SEEDS):
        return replace(made, verdict="incomplete"), OPEN
    return replace(made, verdict="inconclusive"), p_values(claim, found)


def _least_supporting(claim: Claim, found: Sample) -> Estimate:
    """The number of the condition whose mean supports the claim least, with its 95 % t interval."""
    towards = {LESS: found.means, MORE: -found.means, SAME: np.abs(found.means)}[claim.direction]
    i = int(np.argmax(towards))
    mean, error, freedom = (float(x[i]) for x in (found.means, found.errors, found.freedom))
    reach = float(special.stdtrit(freedom, 0.975)) * error if freedom else np.nan
    return Estimate(mean, mean - reach, mean + reach, error * found.seeds**0.5, found.seeds)


def gap(arm: Arms, **factors: object) -> pd.Series:
    """The contrast that most claims are about: warm start minus fresh network, in points."""
    return arm(WARM, **factors) - arm(FRESH, **factors)


def slope(columns: Sequence[pd.Series], x: Sequence[float]) -> pd.Series:
    """Least-squares slope over x within each seed; `columns` has the values by seed at each x."""
    centred = np.asarray(x, float) - np.mean(x)
    return sum(w * column for w, column in zip(centred, columns, strict=True)) / np.square(centred).sum()
