import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from repro import cli, profiles
from repro.config import InputError
from repro.questions import STUDIES
from repro.store.records import Store
from repro.sweep import cluster, dispatch, plans
from repro.sweep.progress import Progress

SETTINGS = ["train=64", "test=32", "width=8", "batch_size=16", "tuning_epochs=6"]
cores = itertools.cycle(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def warm_start(seeds):
    return [case.run for case in STUDIES["warm_start"].cases(profiles.profile("smoke", SETTINGS, seeds))]


@pytest.mark.parametrize(
    ("on", "line"),
    [
        ("lsf", "--on takes slurm or an address such as tcp://localhost:8786, not 'lsf'"),
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9"),
        ("slurm", "there is no sbatch here"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_clear_line(on, line, monkeypatch, capsys):
    pytest.importorskip("distributed", reason="needs the extra `cluster`")
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "warm_start", "--profile", "smoke", "--on", on])
    told = capsys.readouterr()
    assert (end.value.code, told.out) == (2, "")
    assert line in told.err and told.err.count("\n") == 1


def test_without_dask_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r'pip install "repro\[cluster\]"'), cluster.connected("slurm"):
        pass


def test_a_job_that_slurm_refuses_is_one_clear_line_and_interrupts_still_stop_cleanly(tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue", reason="needs the extra `cluster`")
    for name in [name for name in sys.modules if name.partition(".")[0] == "dask_jobqueue"]:
        monkeypatch.delitem(sys.modules, name)  # it is its import that takes the interrupt
    sbatch, before = tmp_path / "sbatch", signal.getsignal(signal.SIGINT)
    sbatch.write_text("#!/bin/sh\necho no such queue >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path / "results"))
    with (
        pytest.raises(InputError, match="SLURM refuses the job: no such queue; "),
        cluster.connected("slurm"),
    ):
        pass
    assert signal.getsignal(signal.SIGINT) is before


def dask(*arguments):
    """A process of Dask that may use one core, as two of them may share this machine."""
    core = next(cores) if cores else None
    pinned = {"preexec_fn": lambda: os.sched_setaffinity(0, [core])} if cores else {}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *arguments],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        **pinned,
    )


@pytest.mark.slow
def test_forty_runs_are_forty_records_though_a_worker_is_killed(tmp_path):
    pytest.importorskip("distributed", reason="needs the extra `cluster`")
    file, store, calm = tmp_path / "scheduler.json", Store(tmp_path / "store"), Store(tmp_path / "calm")
    made, killed = plans.plan(warm_start(20)), []
    scheduler = "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"
    worker = "distributed.cli.dask_worker", "--nthreads", "1", "--memory-limit", "0", "--no-nanny"
    started = [dask(*scheduler, "--scheduler-file", str(file))]
    try:
        while not file.exists():
            time.sleep(0.1)
        started += [dask(*worker, "--no-dashboard", "--scheduler-file", str(file)) for _ in range(2)]

        def show(progress):
            if progress.steps_done > made.steps / 4 and not killed:
                killed.append(started[1])
                started[1].kill()

        address = json.loads(file.read_text())["address"]
        outcome = dispatch.execute(
            made,
            store,
            device="cpu",
            precision="float32",
            place=cluster.place(address),
            progress=Progress(show=show),
        )
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert killed and outcome == dispatch.Outcome()
    assert store.ids() == made.wanted.keys()
    assert len(store.ids()) == 40
    threads = torch.get_num_threads()
    torch.set_num_threads(store.read(next(iter(store.ids())))["threads"])
    dispatch.execute(made, calm, device="cpu", precision="float32", slots=1)
    torch.set_num_threads(threads)
    assert {name: store.read(name)["curves"] for name in store.ids()} == {
        name: calm.read(name)["curves"] for name in calm.ids()
    }
    assert not list(store.checkpoint("x").parent.iterdir())
    assert not list(store.leases.iterdir())
