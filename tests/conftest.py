import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny networks only lose by more

import pytest
from hypothesis import settings

settings.register_profile("repro", derandomize=True, deadline=None, database=None)
settings.load_profile("repro")


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Empty folders of the test's own for records and for data sets."""
    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("REPRO_COMMIT", raising=False)
