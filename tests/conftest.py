import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny networks only lose by more

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repro", derandomize=True, deadline=None, database=None)
settings.load_profile("repro")
ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items):
    """Tests of the one book, which is built once, go to one of pytest-xdist's processes."""
    for item in items:
        if "smoke_results" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("book"))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Empty folders of the test's own for records and for data sets."""
    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("REPRO_COMMIT", raising=False)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # hides what is only written at the end


@pytest.fixture(scope="session")
def smoke_results(tmp_path_factory) -> Path:
    """The store of the smoke profile that the tests of chapters and pages share."""
    return tmp_path_factory.mktemp("results")


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
