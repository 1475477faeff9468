"""What chapters say and show, whatever is recorded."""

import base64
import inspect
import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter

from repro import profiles, scorecard
from repro.analysis import recorded
from repro.figures import common, shown
from repro.questions import QUESTIONS, STUDIES, reset, stages, two_phases
from repro.running import run_study
from repro.study import FRESH, WARM


def results_of(study="warm_start", **columns):
    """Results with this table, and columns that captions ask for."""
    table = pd.DataFrame(columns)
    for name, value in {"run_id": "a", "diverged": False, "train_accuracy": 1.0}.items():
        table[name] = table.get(name, value)
    return recorded.Results(STUDIES[study], profiles.profile("smoke"), table, pd.DataFrame(), 0)


def test_names_with_commas_are_told_apart_by_semicolons():
    assert shown.enumerated([]) == "not recorded"
    assert shown.enumerated(["a"]) == "a"
    assert shown.enumerated(["a", "b", "c"]) == "a, b and c"
    assert shown.enumerated(["a, b", "c"]) == "a, b; and c"


def test_means_are_listed_seeds_before_runs():
    named = pd.DataFrame({"seed": [0, 1, 0], "by": ["Adam", "Adam", "SGD"], "gap": [-3.0, -2.0, 4.0]})
    assert shown.listed(named, "by") == "−2.5 for Adam and +4.0 for SGD"
    gaps = pd.DataFrame({"seed": [0, 0, 1], "width": [4, 4, 4], "gap": [-1.0, -3.0, -6.0]})
    assert shown.listed(gaps, "width", "width {}") == "−4.0 for width 4"
    assert shown.listed(gaps, "depth") == "not recorded"


def test_a_contrast_is_paired_by_seed():
    found = results_of(
        condition=[FRESH, WARM, FRESH, WARM, WARM],
        seed=[0, 0, 1, 1, 2],
        test_accuracy=[0.5, 0.4, 0.7, 0.6, 0.1],
    )
    difference = shown.contrast(found, WARM, FRESH)
    assert (difference.mean, difference.n) == (pytest.approx(-10), 2), "seed 2 has no fresh run"
    assert shown.contrast(found, "smooth", FRESH).n == 0


def test_stages_before_the_last_are_counted_that_were_fitted():
    curves = pd.DataFrame(
        {
            "condition": "stages",
            "seed": [0] * 4 + [1] * 4,
            "parts": 2,
            "ratio": 1.0,
            "stage": [1, 1, 2, 2] * 2,
            "train_accuracy": [0.5, 1.0, 0.2, 0.3, 0.5, 0.98, 1.0, 1.0],
        }
    )
    found = results_of("stages", condition=[], seed=[])
    found = recorded.Results(found.study, profiles.profile("quick"), found.table, curves, 0)
    assert stages.fitting(found).startswith("Of 2 stages before the last, 1 reached 99 %")


def test_probes_are_compared_by_geometric_means():
    table = {
        "condition": [FRESH, WARM, FRESH, WARM],
        "seed": [0, 0, 1, 1],
        "tuning_epochs": [1] * 4,
        "noise_trace": [1.0, 4.0, 2.0, 2.0],
    }
    assert two_phases.ratios(results_of("probes", **table), "noise_trace") == "2.00 after 1"
    assert two_phases.ratios(results_of("probes", **table), "curvature") == "not recorded"


SHOWN = [
    pytest.param(question, name, id=f"{question.__name__.split('.')[-1]}.{name}")
    for question in QUESTIONS
    for name, function in inspect.getmembers(question, inspect.isfunction)
    if function.__module__ == question.__name__
    and function.__annotations__.get("return") in ("Captioned | Words", "Table | Words", "Words")
]


@pytest.mark.parametrize(("question", "name"), SHOWN)
def test_what_is_not_recorded_is_told_in_words_and_leaves_no_empty_panel(question, name):
    for study in question.STUDIES:
        result = getattr(question, name)(run_study(study.name, "quick", device="none"))
        assert isinstance(result, shown.Words)
    assert len(SHOWN) >= 25


@pytest.mark.parametrize("study", STUDIES)
def test_one_line_says_how_to_record_what_is_missing(study):
    found = run_study(study, "quick", device="none")
    line = shown.unrecorded(found)
    if found.missing:
        assert "\n" not in line and f"`repro run {study} --profile quick`" in line
    else:  # this profile does not plan it
        assert line == ""


def test_the_scale_told_is_the_largest_that_is_whole(tmp_path, monkeypatch):
    root = recorded.Store.of("quick").folder.parent
    monkeypatch.setenv("REPRO_RESULTS", str(shown_results()))
    assert run_study("warm_start").profile.name == "cifar10"
    monkeypatch.setenv("REPRO_RESULTS", str(root))
    assert len(run_study("warm_start").table) == 0


def shown_results():
    from repro.store.records import ROOT

    return ROOT / "results"


def test_the_scorecard_tells_a_claim_at_one_scale_and_shows_the_others_below(monkeypatch):
    monkeypatch.setenv("REPRO_RESULTS", str(shown_results()))
    frame = scorecard.claims_table("warm_start").frame
    first = frame[frame.claim != ""]
    assert list(first.scale) == ["cifar10", "cifar10"]
    assert set(frame.scale) > {"cifar10"}, "smaller scales stand beside it"
    words = scorecard.tally(scorecard.told())
    assert sum(int(n) for n in words.replace("**", "").split(": ")[1:] if n.isdigit()) <= 21
    assert "Reproduced: " in words


FIGURE = """
import json, sys
import matplotlib.pyplot
from repro.questions import warm_start
from repro.running import run_study
_ = sys.stdout.buffer.write(warm_start.gaps(run_study("warm_start")).picture())
"""


def test_a_figure_is_the_same_whatever_the_users_own_settings_are(tmp_path):
    hostile = tmp_path / "matplotlibrc"
    hostile.write_text("font.size: 30\nfont.family: monospace\nsavefig.bbox: tight\nsvg.hashsalt: other\n")
    startup = tmp_path / "profile_default" / "startup" / "00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(
        "import matplotlib\nmatplotlib.rcParams.update({'font.size': 30, 'axes.facecolor': 'red'})\n"
        "import sys\nprint(matplotlib.rcParams['font.size'], file=sys.stderr)\n"
    )
    env = os.environ | {"REPRO_RESULTS": str(shown_results())}
    plain, by_file, by_startup = [
        subprocess.run([sys.executable, *call, FIGURE], env=env | more, capture_output=True, check=True)
        for call, more in (
            (["-c"], {}),
            (["-c"], {"MATPLOTLIBRC": str(hostile)}),
            (["-m", "IPython", "--colors=NoColor", "-c"], {"IPYTHONDIR": str(tmp_path)}),
        )
    ]
    assert plain.stdout == by_file.stdout == by_startup.stdout and plain.stdout.startswith(b"<?xml")
    assert b"30.0" in by_startup.stderr  # the file was run


def test_a_figure_and_its_caption_are_outputs_of_their_cell(capsys, monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda data, **rest: displayed.append((data, rest)))
    gaps = pd.DataFrame({"condition": WARM, "seed": [0, 1], "gap": [-1.0, -2.0]})
    found = results_of(condition=[WARM] * 2, seed=[0, 1])
    DisplayFormatter()  # what a kernel shows with
    shown.captioned(common.gap_strip(gaps), found, "fig-gap", "Gaps.", "Two gaps.")._ipython_display_()
    (picture, about), (words, mark) = displayed
    assert picture["image/svg+xml"].startswith('<svg role="img" aria-label="Two gaps."')
    assert about["metadata"][shown.MARK]["name"] == "fig-gap" and mark["metadata"] == {shown.MARK: {}}
    assert words["text/markdown"].startswith("*Figure.* Gaps. 1 run, 2 seeds")
    json.dumps(displayed[0][0])
    assert "image/png" not in picture
    monkeypatch.setenv("BOOK_URL", "https://example.org/book")  # links to the pages can show a picture
    shown.captioned(common.gap_strip(gaps), found, "fig-gap", "Gaps.", "Two gaps.")._ipython_display_()
    assert base64.b64decode(displayed[2][0]["image/png"]).startswith(b"\x89PNG")


def test_a_page_names_the_rate_that_its_networks_had():
    """SGD at `quick`, whose rate is tied to that of Adam."""
    found = run_study("warm_start", "quick", device="none")
    assert "SGD at rate 0.2." in shown.budget(found)


def test_a_reset_depth_is_told_from_none_to_all():
    found = results_of(
        "reset",
        condition=[FRESH, WARM, "reset 6", "reset 1"],
        seed=[0] * 4,
        test_accuracy=[0.8, 0.7, 0.75, 0.6],
    )
    assert reset.last_reset(found)["last"].tolist() == [0, 1]
    assert reset.found(found).endswith("−10.0 for 0 and −5.0 for 1.")


def test_own_records_stand_beside_the_published_ones_with_a_tolerance(tmp_path, monkeypatch, capsys):
    """A copy agrees with itself; five points less for every warm start do not."""
    from repro import cli
    from repro.store.records import Store, _checksum, _text

    source, own = Store(shown_results() / "digits"), tmp_path / "own"
    monkeypatch.setenv("REPRO_RESULTS", str(own))
    for shift, word in ((0.0, "yes"), (0.05, "no")):
        (own / "digits").mkdir(parents=True, exist_ok=True)
        for name in source.ids():
            record = json.loads(source.path(name).read_text())
            if len(record["curves"]) > 1:
                last = record["curves"][-1]
                last["test_accuracy"] = [max(0.0, v - shift) for v in last["test_accuracy"]]
            record["checksum"] = _checksum(record)
            (own / "digits" / f"{name}.json").write_text(_text(record))
        frame = scorecard.against(profiles.profile("digits"), source.folder)
        assert frame.set_index("claim").agree["gap"] == word
    for where, status in (("published", 0), (str(tmp_path / "nowhere"), 2)):
        with pytest.raises(SystemExit) as end:
            cli.main(["claims", "--profile", "digits", "--against", where])
        assert end.value.code == status
    assert "no records of the profile digits" in capsys.readouterr().err
