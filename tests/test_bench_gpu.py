"""The one command for a GPU, at toy size."""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import weakref
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from benchmarks import gpu, gpu_tasks, pages
from repro import profiles
from repro.questions.warm_start import warm_start
from repro.store.records import ROOT, Store, defect
from repro.sweep import layouts

SMOKE = ("--profile", "smoke", "--seeds", "1", "warm_start")


def started(out, results, *options):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--results", str(results), *options]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What the whole command printed, its folder, and the folder of results."""
    out, results = (tmp_path_factory.mktemp(name) for name in ("out", "results"))
    process = started(out, results, "--minutes", "5", *SMOKE)
    said = process.communicate()[0]
    assert process.returncode == 0, said[-2000:]
    return said, out, results


@pytest.fixture(scope="module")
def figures(done):
    return json.loads((done[1] / "gpu.json").read_bytes())


@pytest.mark.slow
def test_every_part_comes_to_its_end_and_leaves_few_small_files(done, figures):
    ends = {part: found["ended"] for part, found in figures["parts"].items()}
    assert ends.keys() == gpu.PARTS.keys()
    assert {ends[part] for part in ("checks", "table", "train")} == {"done"}
    assert len(list(done[1].iterdir())) <= 8
    assert all(path.stat().st_size < 16 * 2**20 for path in done[1].iterdir())
    assert len(done[0]) < 12_000


@pytest.mark.slow
def test_a_cpu_repeats_itself_bit_for_bit(figures):
    for way in ("alone", "streams", "grouped"):
        found = figures["checks"][f"same bits, {way}"]
        assert (found["twice"], found["resumed"]) == (True, True)


@pytest.mark.slow
def test_what_was_measured_adds_up(figures):
    rows = figures["table"]
    measured = {name for name, row in rows.items() if row.get("rate", 0) > 0}
    assert {f"w4 {gpu.plain_name(way)}" for way in gpu.PLAIN} <= measured
    assert {"w4 P=2 grouped", "w4 P=2 streams", "w8 P=2 streams"} <= measured
    assert all("failed" in rows[name] for name in rows.keys() - measured)
    for width, best in figures["best"].items():
        rates = [row["rate"] for row in rows.values() if row["way"] == "ours" and "rate" in row]
        assert best["width"] == int(width) and best["rate"] in rates
    [profiled] = [v for k, v in figures["checks"].items() if k == "profile of w4 P=2 grouped"]
    assert sum(profiled["shares"].values()) == pytest.approx(100, abs=1)


@pytest.mark.slow
def test_what_was_found_becomes_tables(figures):
    shown = pages.gpu_section(pages.published(figures))
    assert "plain bf16, compiled" in shown and "w4" not in shown
    assert shown.count("| width 4: 2 grouped |") == 3, "its speed, its cost and its profile"
    assert "Then 2 runs of `smoke` were trained" in shown and "†" not in shown


def test_the_page_shows_what_was_measured():
    assert pages.TABLES.read_text() == pages.markdown()


@pytest.mark.slow
def test_records_are_sound_and_trained_in_the_layout_measured(done, figures, tmp_path):
    with tarfile.open(done[1] / "records.tar.gz") as archive:
        archive.extractall(tmp_path)
    store = Store(tmp_path / "smoke")
    runs = [case.run for case in warm_start(profiles.profile("smoke", seeds=1))]
    assert store.ids() == {run.id for run in runs}
    assert all(defect(store.read(run.id), run.id) is None for run in runs)
    assert layouts.read(store, runs[0]).population == figures["best"]["4"]["members"]


def test_a_layout_is_the_smallest_population_near_the_fastest():
    def row(members, rate, **way):
        return {"way": "ours", "width": 16, "members": members, "grouped": True, "rate": rate, **way}

    rows = {"a": row(5, 90), "b": row(10, 99), "c": row(20, 100), "d": row(10, 98, grouped=False)}
    assert gpu.best(rows, 16)["members"] == 10
    assert gpu.best(rows, 16)["grouped"]
    assert gpu.best(rows | {"plain": {"way": "bf16", "width": 16, "rate": 900}}, 16)["rate"] == 99
    assert gpu.best(rows | {"e": row(5, 200, free=True)}, 16)["rate"] == 99, "no sweep trains so"
    assert gpu.best(rows, 64) is None


def test_what_is_replayed_keeps_the_memory_it_works_on(monkeypatch):
    for name in ("Stream", "stream", "current_stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())

    def labelled():
        labels = torch.zeros(2)
        return lambda: labels.add_(1), weakref.ref(labels)

    step, labels = labelled()
    call = gpu_tasks.replayed(step)
    assert labels().tolist() == [4, 4], "three times to warm up, and once to capture"
    del step
    gc.collect()
    call()
    assert labels() is not None, "the graph reads where they lie"
    del call
    assert labels() is None


def test_bits_are_compared_as_far_as_they_are_known():
    bits = {
        "alone, whole, a": {"digest": "1"},
        "alone, whole, b": {"digest": "1"},
        "grouped, whole, a": {"digest": "2"},
        "grouped, resumed, a": {"digest": "3"},
        "alone, compiled, whole, b": {"digest": "1"},
    }
    assert gpu.same_bits(bits) == {
        "alone": {"twice": True},
        "grouped": {"resumed": False, "as alone": False},
        "alone, compiled": {},
    }
    bits |= {f"{way}, compiled, whole, a": {"digest": "1"} for way in ("alone", "grouped")}
    assert gpu.same_bits(bits)["alone, compiled"] == {"twice": True, "as eager": True}
    assert gpu.same_bits(bits)["grouped, compiled"] == {"as alone": True, "as eager": False}


def test_a_process_that_hangs_is_left_and_what_it_said_is_kept(tmp_path):
    code = "import time; print('{\"found\": 1}', flush=True); print('a line', flush=True); time.sleep(60)"
    start = time.monotonic()
    with gpu.listening({"a": [sys.executable, "-c", code]}, tmp_path / "log", start + 3) as lines:
        said = [what for _, what in lines if what is not None]
    assert said == [{"found": 1}, "a line"]
    assert time.monotonic() - start < 15
    assert "a line" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_signal_leaves_what_is_there(tmp_path):
    process = started(tmp_path / "out", tmp_path / "results", "--minutes", "2", "--parts", "table")
    assert "TFLOP/s" in process.stdout.readline(), "the machine, found first"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not json.loads(Path(tmp_path, "out", "gpu.json").read_bytes())["machine"]["cuda"]


def test_a_measurement_that_kills_its_process_takes_no_other_with_it(tmp_path, monkeypatch):
    code = (
        "import json, os, sys\n"
        "for spec in json.loads(sys.argv[1])['table']['specs']:\n"
        "    if spec['name'] == 'w16 P=10 streams': os.abort()\n"
        "    failed = {'failed': 'too large'} if spec['members'] == 20 else {}\n"
        "    print(json.dumps(failed or {'rate': 100.0, 'memory': 1, 'first': 1.0}), flush=True)\n"
        "    if failed: sys.exit()\n"
    )
    monkeypatch.setattr(gpu, "tasks", lambda named: [sys.executable, "-c", code, json.dumps(named)])
    bench = gpu.Bench(
        argparse.Namespace(out=tmp_path / "out", results=tmp_path / "results", figures=None, minutes=1)
    )
    known = {"cuda": True, "matrix_rate": 1e12, "operations": {"16": 1e8, "64": 1e9}}
    bench.figures = {"machine": known}
    gpu.compile_ahead(bench)
    assert gpu.table(bench, time.monotonic() + 60) == "done"
    rows = bench.figures["table"]
    assert {name for name, row in rows.items() if "failed" in row} == {
        name for name, row in rows.items() if name == "w16 P=10 streams" or row["members"] == 20
    }
    assert bench.figures["cold"]["w16 P=20 streams, compiled"] == "too large"
    assert {row["rate"] for row in bench.figures["best"].values()} == {100.0}
