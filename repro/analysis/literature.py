"""Warm-start gaps that others published, to stand beside those of this book.

All are of a ResNet-18 on CIFAR-10 without augmentation: half of the data first,
then all of it. What is said of a source was read in its paper and in its code.
The standard error of a gap is that of its pairs of one seed where the runs are
published (Kireev et al.), else that of a difference of independent means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from repro.analysis.recorded import Results
from repro.analysis.stats import Estimate, mean_estimate, signed
from repro.study import WARM


class Pair(NamedTuple):
    """Test accuracies in percent, each with its uncertainty, and the standard error of their difference."""

    fresh: float
    fresh_error: float
    warm: float
    warm_error: float
    gap_error: float


@dataclass(frozen=True)
class Source:
    """A publication and its protocol, as far as it is known."""

    name: str
    link: str
    network: str
    training: str
    uncertainty: str
    note: str
    accuracies: dict[str, Pair]  # by optimiser


SOURCES = (
    Source(
        "Ash &amp; Adams 2020",
        "https://arxiv.org/abs/1910.08475",
        "width 16, depth 2",
        "each stage to 99 % training accuracy, with a new optimiser",
        "standard deviation, 5 runs",
        "fits two thirds of the training set and tests on the other third",
        {"SGD": Pair(56.2, 1.0, 51.7, 0.9, 0.60), "Adam": Pair(78.0, 0.6, 74.4, 0.9, 0.48)},
    ),
    Source(
        "Kireev et al. 2021",
        "https://doi.org/10.5281/zenodo.4834856",
        "width 64, depth 2",
        "each stage to 99 % training accuracy, or to a standard deviation of it below 0.2 points over "
        "three epochs; rate 0.001; the optimiser goes on",
        "standard error, 5 seeds",
        "the code of its Table 1 never puts batch norm in evaluation mode; that of its Figure 1 does; a "
        "max-pooling follows the first convolution",
        {
            "SGD": Pair(60.3, 0.1, 57.8, 0.4, 0.35),
            "SGD with momentum": Pair(65.5, 0.2, 63.4, 0.2, 0.31),
            "Adam": Pair(80.3, 0.1, 79.0, 0.1, 0.19),
        },
    ),
)


def beside(*results: Results) -> pd.DataFrame:
    """A row for each published gap, then for each optimiser of the study `optimizers` at each scale.

    In percent and points. In parentheses the uncertainty that each source gives,
    behind a gap its standard error. Ours are means over seeds of which both
    networks are recorded, with standard errors, of a gap in pairs of one seed; a
    scale without any has no row.
    """
    rows = [_row(_linked(s), s.network, *found) for s in SOURCES for found in s.accuracies.items()]
    for r in _recorded(results):
        for optimizer, pairs in _pairs(r).groupby("optimizer", sort=False):
            columns = 100 * pairs.fresh_accuracy, 100 * pairs.test_accuracy, pairs.gap
            fresh, warm, gap = map(mean_estimate, columns)
            found = Pair(fresh.mean, _error(fresh), warm.mean, _error(warm), _error(gap))
            rows.append(_row(_ours(r), _network(r), optimizer, found))
    return pd.DataFrame(rows)


def protocols(*results: Results) -> pd.DataFrame:
    """A row for each source, ours last: network, training, what stands in parentheses, and what to know."""
    rows = [(_linked(s), s.network, s.training, s.uncertainty, s.note) for s in SOURCES]
    for r in _recorded(results):
        profile, n = r.profile, _pairs(r).seed.nunique()
        images = "all" if profile.train is None else f"{profile.train:,}"
        training = f"{profile.pretraining_epochs} + {profile.tuning_epochs} epochs"
        note = f"{images} training images of {profile.dataset}"
        seeds = f"standard error, {n} seed{'s' * (n != 1)}"
        rows.append((_ours(r), _network(r), training, seeds, note))
    return pd.DataFrame(rows, columns=["source", "network", "training", "in parentheses", "note"])


def _recorded(results: tuple[Results, ...]) -> list[Results]:
    """Those of which a gap is recorded, one for each scale."""
    return list({r.profile: r for r in results if len(_pairs(r))}.values())


def _pairs(results: Results) -> pd.DataFrame:
    """A row for each warm start beside the fresh network of its seed."""
    return results.gaps[results.gaps.condition == WARM]


def _linked(source: Source) -> str:
    return f'<a href="{source.link}">{source.name}</a>'


def _ours(results: Results) -> str:
    return f"this book, {results.profile.name}"


def _network(results: Results) -> str:
    return f"width {results.profile.width}, depth {results.profile.depth}"


def _error(estimate: Estimate) -> float:
    """Standard error of a mean over seeds; NaN for one seed."""
    return estimate.sd / estimate.n**0.5


def _row(source: str, network: str, optimizer: str, found: Pair) -> dict[str, str]:
    """A row for a pair of test accuracies in percent, each with its uncertainty; the gap is warm minus "
    "fresh."""
    return {
        "source": source,
        "network": network,
        "optimiser": optimizer,
        "fresh, %": _with_error(f"{found.fresh:.1f}", found.fresh_error),
        "warm start, %": _with_error(f"{found.warm:.1f}", found.warm_error),
        "gap, points": _with_error(signed(found.warm - found.fresh), found.gap_error),
    }


def _with_error(value: str, error: float) -> str:
    """As in `80.3 (0.1)`, on one line; the value alone where one seed has no error."""
    return value if np.isnan(error) else f"{value}\N{NO-BREAK SPACE}({error:.1f})"
