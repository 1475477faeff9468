"""Published gaps and ours in one table, whatever is recorded."""

import dataclasses

import pandas as pd
import pytest

from repro import profiles
from repro.analysis import literature, recorded
from repro.questions import STUDIES
from repro.study import FRESH, WARM

PUBLISHED = sum(len(source.accuracies) for source in literature.SOURCES)
FRESH_ACCURACY = (0.80, 0.81, 0.82)
CIFAR10 = profiles.profile("cifar10")
WIDE = profiles.profile("cifar10", ["width=64"])


def results(profile=CIFAR10, warm=(0.78, 0.80, 0.79), fresh=FRESH_ACCURACY):
    """Of the study `optimizers` under Adam, a network of each condition for every accuracy, by seed."""
    of = {FRESH: fresh, WARM: warm}
    rows = [
        {"condition": condition, "seed": seed, "optimizer": "Adam", "test_accuracy": accuracy}
        for condition, accuracies in of.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    columns = ["condition", "seed", "optimizer", "test_accuracy"]
    return recorded.Results(
        STUDIES["optimizers"], profile, pd.DataFrame(rows, columns=columns), pd.DataFrame(), 0
    )


def beside(*of):
    return literature.beside(*of).replace("\N{NO-BREAK SPACE}", " ", regex=True)


def ours(*of):
    return beside(*of).iloc[PUBLISHED:]


def test_published_gaps_come_first_as_printed_with_their_standard_errors():
    table = beside()
    assert len(table) == PUBLISHED
    adam = table[table.optimiser == "Adam"]
    assert adam["fresh, %"].tolist() == ["78.0 (0.6)", "80.3 (0.1)"]
    assert adam["gap, points"].tolist() == ["−3.6 (0.5)", "−1.3 (0.2)"]


def test_ours_is_a_mean_over_pairs_of_one_seed_with_standard_errors():
    [row] = ours(results()).to_dict("records")
    assert row["network"] == "width 16, depth 2" and row["optimiser"] == "Adam"
    assert (row["fresh, %"], row["warm start, %"]) == ("81.0 (0.6)", "79.0 (0.6)")
    assert row["gap, points"] == "−2.0 (0.6)"  # of −2, −1 and −3


def test_a_network_without_its_partner_does_not_count():
    assert ours(results(warm=(0.78, 0.80))).equals(ours(results(warm=(0.78, 0.80), fresh=(0.80, 0.81))))


def test_one_seed_has_no_standard_error():
    [row] = ours(results(warm=(0.78,))).to_dict("records")
    assert row["gap, points"] == "−2.0"


@pytest.mark.parametrize("table", [literature.beside, literature.protocols])
def test_each_scale_stands_once_and_one_without_records_not_at_all(table):
    unrecorded = results(dataclasses.replace(CIFAR10, width=8), warm=())
    networks = table(results(), unrecorded, results(WIDE), results()).network
    assert networks.tolist()[-2:] == ["width 16, depth 2", "width 64, depth 2"]
    assert len(networks) == len(table()) + 2


def test_protocols_say_how_many_seeds_and_how_long():
    row = literature.protocols(results(WIDE)).iloc[-1]
    assert row.training == "50 + 45 epochs" and row.note == "all training images of cifar10"
    assert row["in parentheses"] == "standard error, 3 seeds"
