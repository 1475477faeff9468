"""Generalisation gaps of warm starts that others published, for comparison with those of this book.

All are of a ResNet-18 on CIFAR-10 without augmentation: half of the data first,
then all of it. What is said of a source comes from its paper and its code. The
standard error of a gap is computed from pairs of one seed if single runs are
published (Kireev et al.), else as that of a difference of independent means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from repro.analysis.recorded import Results
from repro.analysis.stats import mean_estimate, signed
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
    """A publication, or this book at one scale, with its protocol, as far as that is known."""

    name: str  # HTML
    network: str
    training: str
    uncertainty: str  # what the numbers in parentheses are
    note: str
    accuracies: dict[str, Pair]  # by optimiser


SOURCES = (
    Source(
        '<a href="https://arxiv.org/abs/1910.08475">Ash &amp; Adams 2020</a>',
        "width 16, depth 2",
        "each stage to 99 % training accuracy, with a new optimiser",
        "standard deviation, 5 runs",
        "trained on two thirds of the training set, tested on the other third",
        {"SGD": Pair(56.2, 1.0, 51.7, 0.9, 0.60), "Adam": Pair(78.0, 0.6, 74.4, 0.9, 0.48)},
    ),
    Source(
        '<a href="https://doi.org/10.5281/zenodo.4834856">Kireev et al. 2021</a>',
        "width 64, depth 2",
        "each stage to 99 % training accuracy, or until its standard deviation over three epochs is below "
        "0.2 points; rate 0.001; the optimiser is kept between stages",
        "standard error, 5 seeds",
        "the code for its Table 1 never switches batch norm to evaluation mode, that for its Figure 1 "
        "does; max-pooling follows the first convolution",
        {
            "SGD": Pair(60.3, 0.1, 57.8, 0.4, 0.35),
            "SGD with momentum": Pair(65.5, 0.2, 63.4, 0.2, 0.31),
            "Adam": Pair(80.3, 0.1, 79.0, 0.1, 0.19),
        },
    ),
)


def beside(*results: Results) -> pd.DataFrame:
    """A row for each published gap, then for each optimiser in `results` (of the study `optimizers`).

    Parentheses hold the uncertainty that the source gives for an accuracy, and the
    standard error of a gap. Our own rows have means and standard errors over the
    seeds at which both networks are recorded, for gaps in pairs of one seed. A scale
    with no such seed, or with other data than CIFAR-10, has no row.
    """
    return pd.DataFrame(
        {
            "source": source.name,
            "network": source.network,
            "optimiser": optimizer,
            "fresh, %": _with_error(f"{pair.fresh:.1f}", pair.fresh_error),
            "warm start, %": _with_error(f"{pair.warm:.1f}", pair.warm_error),
            "gap, points": _with_error(signed(pair.warm - pair.fresh), pair.gap_error),
        }
        for source in (*SOURCES, *_ours(results))
        for optimizer, pair in source.accuracies.items()
    )


def protocols(*results: Results) -> pd.DataFrame:
    """A row for each source, ours last: network, training, meaning of the parentheses, and a note."""
    columns = ["source", "network", "training", "in parentheses", "note"]
    rows = [dataclasses.astuple(source)[: len(columns)] for source in (*SOURCES, *_ours(results))]
    return pd.DataFrame(rows, columns=columns)


def _ours(results: Iterable[Results]) -> Iterator[Source]:
    """This book as a source, once per scale that uses CIFAR-10, as the others do, and has a recorded gap."""
    for profile, r in {r.profile: r for r in results}.items():
        pairs = r.gaps[r.gaps.condition == WARM]
        if pairs.empty or profile.dataset != "cifar10":
            continue
        images = "all" if profile.train is None else f"{profile.train:,}"
        n = pairs.seed.nunique()
        yield Source(
            f"this book, {profile.name}",
            f"width {profile.width}, depth {profile.depth}",
            f"{profile.pretraining_epochs} + {profile.arms_tuned} epochs",
            f"standard error, {n} seed{'s' * (n != 1)}",
            f"{images} training images of {profile.dataset}",
            {name: _pair(part) for name, part in pairs.groupby("optimizer", sort=False)},
        )


def _pair(pairs: pd.DataFrame) -> Pair:
    """Means over seeds with their standard errors, which are NaN for a single seed."""
    columns = 100 * pairs.reference_accuracy, 100 * pairs.test_accuracy, pairs.gap
    fresh, warm, gap = map(mean_estimate, columns)
    of_fresh, of_warm, of_gap = (found.sd / found.n**0.5 for found in (fresh, warm, gap))
    return Pair(fresh.mean, of_fresh, warm.mean, of_warm, of_gap)


def _with_error(value: str, error: float) -> str:
    """`80.3 (0.1)`, with a space that does not break; the value alone if its error is NaN."""
    return value if np.isnan(error) else f"{value}\N{NO-BREAK SPACE}({error:.1f})"
