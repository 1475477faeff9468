"""Statistics of records: the generalisation gap, intervals of means over seeds, and p values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repro.lazy import Lazy

# Lazy: they take half a second to import, and claims are listed without them; scipy.stats would add a second.
np, pd, special = Lazy("numpy"), Lazy("pandas"), Lazy("scipy.special")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; all numbers are NaN without seeds, all but the mean with one."""

    mean: float
    low: float  # lower bound of Student's t interval
    high: float  # upper bound
    sd: float  # standard deviation over seeds
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 1) -> str:
        """For example `-9.8 (95 % interval -15.7 to -4.0, 5 seeds)`, with typographic minus signs."""
        if not self.n:
            return "(not recorded)"
        if self.n < 2:
            return f"{signed(self.mean, digits)} (1 seed, no interval)"
        bounds = between((self.low, self.high), digits)
        return f"{signed(self.mean, digits)} ({100 * self.level:g} % interval {bounds}, {self.n} seeds)"


def signed(value: float, digits: int = 1) -> str:
    """The number with its sign, a typographic minus; "not known" for NaN."""
    if np.isnan(value):
        return "not known"
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def between(interval: tuple[float, float], digits: int = 1) -> str:
    """An interval in words: `-13.6 to -6.1`."""
    return " to ".join(signed(bound, digits) for bound in interval)


def generalisation_gap(
    table: pd.DataFrame, pairs: Sequence[str] = (), against: str = "fresh"
) -> pd.DataFrame:
    """Gap of each run to the condition `against`, in percentage points, paired by seed (paper, section 1).

    `table` is a `tables.table`; the rows of all other conditions are returned with
    the accuracy of `against` as `reference_accuracy` and the difference as `gap`, which is
    negative if pretraining hurt. Both runs of a pair share initial weights, test images
    and training images; that makes gaps vary less, as far as these are what makes seeds
    differ. `pairs` names factors in which both must agree too. A run without a recorded
    partner is left out.
    """
    if table.empty:
        return table.assign(reference_accuracy=[], gap=[])
    keys = ["seed", *pairs]
    fresh = table[table.condition == against][[*keys, "test_accuracy"]]
    fresh = fresh.rename(columns={"test_accuracy": "reference_accuracy"})
    pretrained = table[table.condition != against].merge(fresh, on=keys)
    return pretrained.assign(gap=100 * (pretrained.test_accuracy - pretrained.reference_accuracy))


def p_below(mean: float, error: float, freedom: float, bound: float) -> float:
    """P value of the one-sided t test of H0: true mean >= bound, against H1: true mean < bound.

    `error` is the standard error of `mean`, which must be positive, `freedom` its degrees of freedom.
    """
    return float(special.stdtr(freedom, (mean - bound) / error))


def holm(p: Sequence[float]) -> np.ndarray:
    """P values adjusted for multiple tests by Holm's step-down method, in the order given."""
    order = np.argsort(p)
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def two_way_residuals(y: np.ndarray) -> np.ndarray:
    """Residuals of values [seeds, arms] after removing the mean of each arm and of each seed."""
    return y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()


def noncentrality(freedom: float, level: float, power: float) -> float:
    """True effect, in standard errors, that a one-sided t test at `level` detects with this power."""
    return float(special.nctdtrinc(freedom, 1 - power, special.stdtrit(freedom, 1 - level)))


def mean_estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean of independent values, one per seed, with Student's t interval."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean()) if len(x) else np.nan
    if len(x) < 2:
        return Estimate(mean, np.nan, np.nan, np.nan, len(x), level)
    sd = float(x.std(ddof=1))
    reach = float(special.stdtrit(len(x) - 1, (1 + level) / 2)) * sd / len(x) ** 0.5
    return Estimate(mean, mean - reach, mean + reach, sd, len(x), level)
