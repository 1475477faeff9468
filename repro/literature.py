"""Warm-start gaps that others published, to stand beside those of this book.

All are of a ResNet-18 on CIFAR-10 without augmentation: half of the data first,
then all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from repro.stats import mean_estimate, signed
from repro.studies import FRESH, WARM
from repro.sweep import Results


@dataclass(frozen=True)
class Source:
    """A publication and its protocol, as far as it is known."""

    name: str
    link: str
    network: str
    training: str
    uncertainty: str
    note: str
    accuracies: dict[
        str, tuple[float, float, float, float]
    ]  # fresh, its uncertainty, warm, its uncertainty, %


SOURCES = (
    Source(
        "Ash &amp; Adams 2020",
        "https://arxiv.org/abs/1910.08475",
        "width 16",
        "to 99 % training accuracy",
        "as given there",
        "fits two thirds of the training set and tests on the other third",
        {"SGD": (56.2, 1.0, 51.7, 0.9), "Adam": (78.0, 0.6, 74.4, 0.9)},
    ),
    Source(
        "Kireev et al. 2021",
        "https://doi.org/10.5281/zenodo.4834856",
        "ResNet-18",
        "not 350 + 500 epochs",
        "standard error, 5 seeds",
        "its code never puts batch norm in evaluation mode",
        {
            "SGD": (60.3, 0.1, 57.8, 0.4),
            "SGD with momentum": (65.5, 0.2, 63.4, 0.2),
            "Adam": (80.3, 0.1, 79.0, 0.1),
        },
    ),
)


def beside(results: Results) -> pd.DataFrame:
    """A row for each published gap and for each optimiser of the study `optimizers`, in percent.

    In parentheses the uncertainty that each source gives; for ours the standard error over seeds.
    """
    rows = [_row(_linked(s), optimizer, *found) for s in SOURCES for optimizer, found in s.accuracies.items()]
    for optimizer, part in results.table.groupby("optimizer", sort=False):
        of = [mean_estimate(100 * part[part.condition == c].test_accuracy) for c in (FRESH, WARM)]
        found = (x for e in of for x in (e.mean, e.sd / max(1, e.n) ** 0.5))
        rows.append(_row(_ours(results), optimizer, *found))
    return pd.DataFrame(rows)


def protocols(results: Results) -> pd.DataFrame:
    """A row for each source, ours last: network, training, what stands in parentheses, and what to know."""
    rows = [(_linked(s), s.network, s.training, s.uncertainty, s.note) for s in SOURCES]
    profile, n = results.profile, results.table.seed.nunique()
    images = "all" if profile.train is None else f"{profile.train:,}"
    network = f"width {profile.width}, depth {profile.depth}"
    training = f"{profile.pretraining_epochs} + {profile.tuning_epochs} epochs"
    note = f"{images} training images of {profile.dataset}"
    rows.append((_ours(results), network, training, f"standard error, {n} seeds", note))
    return pd.DataFrame(rows, columns=["source", "network", "training", "in parentheses", "note"])


def _linked(source: Source) -> str:
    return f'<a href="{source.link}">{source.name}</a>'


def _ours(results: Results) -> str:
    return f"this book, {results.profile.name}"


def _row(
    source: str, optimizer: str, fresh: float, fresh_error: float, warm: float, warm_error: float
) -> dict[str, str]:
    return {
        "source": source,
        "optimiser": optimizer,
        "fresh, %": f"{fresh:.1f} ({fresh_error:.1f})",
        "warm start, %": f"{warm:.1f} ({warm_error:.1f})",
        "gap, points": signed(warm - fresh),
    }
