import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from repro import cli
from repro.book import execution

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def repro(tmp_path, monkeypatch, capsys):
    """Calls the command line; gives exit code, standard output and standard error."""
    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "data"))

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, arguments)))
        out = capsys.readouterr()
        return end.value.code, out.out, out.err

    return call


def npz(path, **changes):
    random = np.random.default_rng(0)
    arrays = {
        "x_train": random.integers(0, 255, (64, 8, 8), dtype=np.uint8),
        "y_train": np.arange(64) % 4,
        "x_test": random.integers(0, 255, (16, 8, 8), dtype=np.uint8),
        "y_test": np.arange(16) % 4,
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


BAD = {
    "a study": (["run", "warm_strat"], "unknown study 'warm_strat': choose from warm_start"),
    "a profile": (
        ["run", "--profile", "qiuck"],
        "unknown profile 'qiuck': choose from smoke, minutes",
    ),
    "a field": (["run", "--set", "widht=3"], "unknown setting 'widht=3'"),
    "a value": (["run", "--set", "width=wide"], "width takes a whole number, not 'wide'"),
    "a range": (["run", "--set", "width=0"], "width must be at least 1"),
    "a device": (["run", "--profile", "smoke", "--device", "tpu"], "unknown device 'tpu'"),
    "a precision": (["run", "--profile", "smoke", "--precision", "int8"], "unknown precision 'int8'"),
    "a time limit": (["run", "--time-limit", "soon"], "--time-limit takes a number"),
    "an option": (["run", "--profil", "smoke"], "No such option: --profil"),
    "a command": (["rnu"], "No such command 'rnu'"),
    "a setting of the book": (["book", "--profile", "smoke", "--set", "a=1"], "unknown setting 'a=1'"),
    "a chapter": (["book", "--chapters", "warm_strat"], "unknown chapter 'warm_strat'"),
    "a data set": (["run", "--set", "dataset=cifar11"], "unknown data set 'cifar11': choose from digits"),
    "a file": (["run", "--set", "dataset=nowhere.npz"], "there is no file"),
    "seeds": (["run", "--seeds", "0"], "seeds must be at least 1"),
    "batches": (["run", "--set", "train=20"], "batch_size 32 is more than the 10 images"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_clear_line_and_writes_nothing(repro, tmp_path, name):
    arguments, line = BAD[name]
    code, out, err = repro(*arguments)
    assert (code, out) == (2, "")
    assert line in err and err.count("\n") == 1 and err.startswith("repro: ")
    assert not list(tmp_path.iterdir())


WRONG = {
    "shape": ({"x_train": np.zeros((64, 8, 9), np.uint8)}, "x_train has shape [64, 8, 9]"),
    "labels": ({"y_test": np.arange(16)}, "y_test has 4, a class that y_train lacks"),
    "NaN": ({"x_train": np.full((64, 8, 8), np.nan), "x_test": np.zeros((16, 8, 8))}, "x_train has NaN"),
    "missing": ({"y_test": None}, "no y_test"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_of_images_is_one_clear_line_and_writes_nothing(repro, tmp_path, name):
    changes, line = WRONG[name]
    path = npz(tmp_path / "own.npz", **changes)
    code, out, err = repro("run", "--profile", "smoke", "--set", f"dataset={path}")
    assert (code, out) == (2, "") and line in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_own_images_are_trained_on_wherever_the_file_lies(repro, tmp_path):
    path = npz(tmp_path / "own.npz")
    small = ["--profile", "smoke", "--seeds", "1", "--set", "train=all", "--set", "test=all"]
    code, out, _ = repro("run", "warm_start", *small, "--set", f"dataset={path}")
    assert code == 0 and "2 of 2 runs recorded" in out
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    path = path.rename(moved / "own.npz")
    _, out, _ = repro("status", "warm_start", *small, "--set", f"dataset={path}")
    assert out.splitlines()[1].split() == ["warm_start", "2", "2", "0"]


def test_run_status_and_claims_tell_one_story(repro, tmp_path):
    assert repro("status", "warm_start", "--profile", "smoke")[1].splitlines()[1].split()[1:] == [
        "0",
        "6",
        "6",
    ]
    assert repro("run", "warm_start", "--profile", "smoke")[0] == 0
    assert repro("status", "warm_start", "--profile", "smoke")[1].splitlines()[1].split()[1:] == [
        "6",
        "6",
        "0",
    ]
    found = {c["id"]: c for c in json.loads(repro("claims", "--profile", "smoke", "--json")[1])}
    assert found["gap"]["verdict"] == "not tested"  # networks of two or three epochs fit nothing
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.json")}
    assert repro("run", "warm_start", "--profile", "smoke")[0] == 0
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.json")} == before


def test_time_limit_stops_cleanly_and_the_same_command_goes_on(repro):
    command = ["run", "warm_start", "--profile", "smoke"]
    code, out, _ = repro(*command, "--time-limit", "0s")
    assert code == 3 and "0 of 6 runs recorded" in out and "the same command resumes" in out
    code, out, _ = repro(*command)
    assert code == 0 and "6 of 6 runs recorded" in out


def test_plan_counts_what_the_paper_trains(repro):
    _, out, _ = repro("plan", "warm_start", "--profile", "paper", "--speed", "10000")
    _, runs, alone, shared, steps, hours = out.splitlines()[1].split()
    assert (runs, alone, shared) == ("10", "6,750", "6,750")
    assert steps == f"{5 * (2 * 500 * 390 + 350 * 195):,}"
    assert float(hours) == pytest.approx(5 * (2 * 500 * 390 + 350 * 195) * 128 / 10000 / 3600, abs=0.05)


def test_module_runs_as_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "repro", "studies"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "warm_start" in done.stdout


def test_seeds_set_for_a_book_are_those_of_every_study(repro, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "_sweep", lambda profile, runs, _: asked.append((profile, list(runs))) or 0)
    monkeypatch.setattr(execution, "make_book", lambda *request, **options: asked.append(request) or 0)
    arguments = ["--profile", "smoke", "--chapters", "reset,stages", "--set", "seeds=5", "--set", "width=3"]
    assert repro("book", *arguments)[0] == 0
    (profile, runs), request = asked
    assert (profile.seeds, profile.study_seeds, profile.width) == (5, 5, 3)
    assert {run.init_seed for run in runs} == set(range(5))
    assert request[:3] == (
        "smoke",
        ["reset", "stages"],
        {"seeds": 5, "device": "auto", "settings": ["width=3"]},
    )
