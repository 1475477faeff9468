import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny networks only lose by more

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from hypothesis import settings

typer.main.get_command = functools.cache(typer.main.get_command)  # the same options, inspected once a process
settings.register_profile("repro", derandomize=True, deadline=None, database=None)
settings.load_profile("repro")
ROOT = Path(__file__).resolve().parents[1]


SHARED = {"smoke_results", "done", "measured", "starter"}  # fixtures that take many seconds


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """Tests of the one book, or of what else takes long, go to one of pytest-xdist's processes."""
    for item in items:
        for name in SHARED & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Empty folders of the test's own for records and for data sets."""
    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("REPRO_COMMIT", raising=False)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # hides what is only written at the end


@pytest.fixture(scope="session")
def smoke_results(tmp_path_factory) -> Path:
    """The folder of a store of the smoke profile that the tests of chapters and pages share.

    The first seed of five studies is trained, and one network that is probed; other records are made up, as
    each kind of stage is trained elsewhere. The study of budgets is left to its chapter.
    """
    from benchmarks.store import write
    from repro import profiles
    from repro.questions import STUDIES
    from repro.store.records import Store
    from repro.sweep import dispatch, plans

    folder = tmp_path_factory.mktemp("results")
    store, chosen = Store(folder / "smoke"), profiles.profile("smoke")
    cases = {name: study.cases(chosen) for name, study in STUDIES.items() if name != "budget"}
    trained = ("warm_start", "optimizers", "pretraining_length", "smooth_transition", "reset")
    first = {case.run for name in trained for case in cases[name] if case.seed == 0}
    first.add(cases["probes"][0].run)
    for run in {case.run for study in cases.values() for case in study} - first:
        write(store, run)
    assert dispatch.execute(plans.plan(first), store, device="cpu", slots=1) == dispatch.Outcome()
    return folder


@pytest.fixture(scope="session")
def smoke_book(tmp_path_factory, smoke_results) -> Path:
    """The folder of the pages of the whole book at the smoke profile, built once."""
    out = tmp_path_factory.mktemp("book")
    done = subprocess.run(
        [sys.executable, "-m", "repro", "book", "--profile", "smoke", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"REPRO_RESULTS": str(smoke_results)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return out / "_build" / "html"
