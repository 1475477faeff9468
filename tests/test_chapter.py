"""What the pages say in words and numbers, whatever is recorded."""

import html
import math
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro import profiles
from repro.analysis import recorded
from repro.analysis.claims import Verdict
from repro.analysis.stats import mean_estimate
from repro.book import text
from repro.data.sampling import p_full
from repro.figures.style import message
from repro.questions import CLAIMS, STUDIES
from repro.study import FRESH, WARM, reset_condition

BELOW, ABOVE, AROUND, ONE = ([-3.0, -2.0, -2.5], [3.0, 2.0, 2.5], [-3.0, 2.0, 1.0], [4.0])


@pytest.fixture
def unrecorded(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path))
    return lambda name: recorded.results(STUDIES[name], profiles.profile("smoke"))


def estimates(**values):
    return {name: mean_estimate(x) for name, x in values.items()}


def test_names_with_commas_are_told_apart_by_semicolons():
    assert text.enumerated([]) == "none"
    assert text.enumerated(["a"]) == "a"
    assert text.enumerated(["a", "b", "c"]) == "a, b and c"
    assert text.enumerated(["a, b", "c"]) == "a, b; and c"


def test_means_are_listed_and_the_extremes_named():
    found = estimates(Adam=BELOW, SGD=ABOVE, momentum=AROUND)
    assert text.listed(found) == "−2.5 for Adam, +2.5 for SGD and +0.0 for momentum"
    assert text.extremes(found) == "lowest for Adam (−2.5) and highest for SGD (+2.5)"
    assert text.extremes(estimates(Adam=BELOW)) == "−2.5 for Adam"
    assert text.extremes({}) == text.listed({}) == "not recorded"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": BELOW, "b": BELOW}, "below zero for all 2"),
        ({"a": BELOW}, "below zero for a"),
        ({"a": BELOW, "b": AROUND, "c": AROUND}, "below zero for a, and on both sides of zero for b and c"),
        ({"a": ABOVE, "b": ONE}, "above zero for a, and nowhere (with one seed) for b"),
        ({}, "nowhere yet"),
    ],
)
def test_sides_say_where_intervals_lie(values, words):
    assert text.sides(estimates(**values)) == words


@given(st.dictionaries(st.text("abc", min_size=1), st.lists(st.integers(-9, 9), min_size=1, max_size=4)))
def test_every_estimate_lies_on_one_side(values):
    found = estimates(**{name: list(map(float, x)) for name, x in values.items()})
    sides = [text.side_of(e) for e in found.values()]
    for estimate, side in zip(found.values(), sides, strict=True):
        assert (side == text.BELOW) == (estimate.high < 0)
        assert (side == text.UNKNOWN) == (estimate.n < 2)
    assert all(side in text.sides(found) for side in sides)


def test_a_contrast_is_paired_by_seed():
    table = pd.DataFrame(
        [(FRESH, 0, 0.5), (FRESH, 1, 0.7), (WARM, 0, 0.4), (WARM, 1, 0.6), (WARM, 2, 0.1)],
        columns=["condition", "seed", "test_accuracy"],
    )
    results = recorded.Results(STUDIES["warm_start"], profiles.profile("smoke"), table, table, 0)
    found = text.contrast(results, WARM, FRESH)
    assert (found.mean, found.n) == (pytest.approx(-10), 2), "seed 2 has no fresh run"
    assert text.contrast(results, WARM, "reset 6").n == 0


def test_gaps_of_one_seed_are_averaged_before_seeds_are():
    gap = pd.DataFrame({"rate": [1.0, 1.0, 1.0, np.nan], "seed": [0, 0, 1, 1], "gap": [-4.0, -2.0, -1.0, 50]})
    [(name, found)] = text.groups(gap, "rate", "{} times").items()
    assert (name, found.mean, found.n) == ("1 times", -2.0, 2)


def learning(*stages, condition=FRESH, seed=0):
    rows = [
        {"condition": condition, "seed": seed, "stage": i, "epoch": epoch, "train_accuracy": accuracy}
        for i, stage in enumerate(stages, start=1)
        for epoch, accuracy in enumerate(stage, start=1)
    ]
    return pd.DataFrame(rows)


def test_stages_before_the_last_are_counted_that_were_fitted():
    curves = pd.concat(
        [learning([0.5, 1.0], [0.9], [1.0]), learning([1.0], [1.0], [0.2], seed=1)], ignore_index=True
    )
    assert text.fitting(curves, 1.0) == "3 of 4"
    assert text.fitting(curves, 0.9) == "4 of 4"


def test_speed_is_the_mean_of_the_seeds_that_get_there():
    last = reset_condition((6,))
    curves = pd.concat(
        [
            learning([0.5, 0.9]),
            learning([0.9], seed=1),
            learning([0.9], condition=WARM),
            learning([0.2], condition=WARM, seed=1),
            learning([0.1], condition=last),
        ],
        ignore_index=True,
    )
    said = text.speed(curves, [FRESH, WARM, last], 0.9)
    assert said == f"1.5 for fresh; 1.0 for {WARM} (in 1 of 2 runs); never for {last}"
    assert text.speed(curves, [last], 0.9) == "no run got there"


def test_half_of_the_data_has_come_in_half_way_whatever_is_recorded(unrecorded):
    results = unrecorded("smooth_transition")
    assert len(results.table) == 0 and text.gammas(results) == [0.1, 0.5, 0.9]
    epochs = [float(part.split()[0]) for part in text.half_way(results).split(" and ")]
    total = results.profile.tuning_epochs
    for gamma, epoch in zip((0.1, 0.9), epochs, strict=True):
        assert p_full(np.array(epoch), total, gamma) == pytest.approx(0.5, abs=0.02)


def test_probes_are_compared_by_geometric_means():
    table = pd.DataFrame(
        [(c, seed, 1, v * k) for c, k in ((FRESH, 1), (WARM, 0.5)) for seed, v in enumerate((2, 8))],
        columns=["condition", "seed", "tuning_epochs", "sharpness"],
    )
    table.loc[(table.condition == WARM) & (table.seed == 1), "sharpness"] *= 4
    assert text.probe_ratios(table, "sharpness") == "1.00 after 1"
    assert text.probe_ratios(table, "gradient_noise") == "not recorded"


@pytest.mark.parametrize("name", STUDIES)
def test_a_caption_says_what_is_missing_and_how_to_record_it(unrecorded, name):
    said = text.provenance(unrecorded(name), "p_")
    n = len(STUDIES[name].cases(profiles.profile("smoke")))
    assert said["p_runs"] == f"0 runs ({n} more are not recorded yet)"
    assert f"repro run {name} --profile smoke trains them" in said["p_diverged"]
    assert "no precision on no device" in said["p_budget"] and "nan" not in " ".join(said.values())


def test_a_table_of_claims_has_their_numbers_units_and_chapters():
    claims = {claim.id: claim for claim in CLAIMS}
    found = [
        Verdict(claims["grows_with_stages"], "reproduced", mean_estimate(BELOW), 1e-9, "cifar10", 5),
        Verdict(claims["gap"], "incomplete", mean_estimate(ONE), math.nan, "paper", 5),
        Verdict(claims["every_capacity"], "not run", mean_estimate([]), math.nan),
    ]
    page = text.claims_table(found).data.replace("\N{NO-BREAK SPACE}", " ")
    cells = [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall("<td>(.*?)</td>", page)]
    claim, verdict, effect, seeds, p = (cells[column::5] for column in range(5))
    assert [words.split(". ")[1] for words in claim] == [
        "Figure 4, chapter 5",
        "Figure 1, chapter 1",
        "Figure 5, chapter 6",
    ]
    assert verdict == ["reproduced", "incomplete", "not run"]
    assert effect == ["−2.5 points per stage (−3.7 to −1.3)", "+4.0 points", ""]
    assert (seeds, p) == (["3 of 5, cifar10", "1 of 5, paper", ""], ["< 0.0001", "", ""])
    assert 'href="05_stages.html"' in page


def test_accuracies_that_are_not_recorded_are_said_to_be(unrecorded):
    said = text.means(unrecorded("warm_start").table)
    assert set(said.values()) == {"(not recorded)"}
    table = pd.DataFrame({"condition": [FRESH], "test_accuracy": [0.5], "train_accuracy": [math.nan]})
    assert text.means(table)["fresh_test"] == "50.0"


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """What of a kernel turns values into data for a page."""
    pytest.importorskip("myst_nb", reason='needs pip install "repro[book]"')
    from IPython.core.interactiveshell import InteractiveShell

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setitem(mpl.rcParams, "svg.hashsalt", "repro")  # to have it put back
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("address", "first"), [("", {"svg+xml"}), ("https://example.org", {"svg+xml", "png"})]
)
def test_a_figure_is_its_whole_page_and_the_first_a_picture_too_where_links_can_show_it(
    address, first, shell, monkeypatch
):
    def glue(name, value, display):
        made.append(shell.display_formatter.format(value)[0])

    made = []
    monkeypatch.setenv("BOOK_URL", address)
    monkeypatch.setattr("myst_nb.glue", glue)
    text.prepare()
    text.show(one=message("one"), two=message("two"))
    kinds = [{kind.removeprefix("image/") for kind in data if kind.startswith("image/")} for data in made]
    assert kinds == [first, {"svg+xml"}]
    assert 'width="518.4pt"' in made[1]["image/svg+xml"]  # 7.2 inches


def test_a_study_that_a_profile_does_not_have_is_said_not_to_be_recorded():
    found = recorded.results(STUDIES["rates"], profiles.profile("quick"))
    assert found.missing == 0 and found.gaps.empty
    assert text.listed(text.groups(text.on_test_images(found.gaps), "rate")) == "not recorded"


def test_gaps_on_held_out_images_are_no_test_accuracies():
    gap = pd.DataFrame({"rate": [1, 1], "seed": [0, 0], "held_out": [False, True], "gap": [-1.0, 5.0]})
    assert text.on_test_images(gap).gap.tolist() == [-1.0]
