"""What of a machine is used, and what processes that train take over from the one that starts them."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from repro import profiles
from repro.questions import STUDIES
from repro.store.records import ROOT, Store
from repro.sweep import calibration, dispatch, machine, plans, processes
from repro.sweep.progress import Progress

SMOKE = ["warm_start", "--profile", "smoke", "--seeds", "1"]
SCRIPT = """
import sys
from repro import profiles
from repro.questions import STUDIES
from repro.store.records import Store
from repro.sweep import dispatch, plans

runs = [case.run for case in STUDIES["warm_start"].cases(profiles.profile("smoke", ["width=2"], 2))]
"""
LEAVE = "\nsys.stdout.flush()\nimport os\nos._exit(0)"  # it takes half a second to take PyTorch down


def python(code, *arguments, cwd=None, prefix=(), **environment):
    """What a script of its own says, for which this checkout is as if it were installed."""
    command = [*prefix, sys.executable, "-W", "ignore", "-P", "-c", code + LEAVE, *map(str, arguments)]
    own = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def repro(*arguments, prefix=(), **environment):
    command = [*prefix, sys.executable, "-m", "repro", *arguments]
    own = os.environ | environment
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=300)


# Cores and memory

VERSION1 = "4:memory:/jobs/one\n3:cpuset:/\n2:cpu,cpuacct:/jobs/one\n"
GROUPS = {
    "no group": ("", {}, (64, None)),
    "no limit, version 2": ("0::/jobs", {"jobs/cpu.max": "max 100000", "jobs/memory.max": "max"}, (64, None)),
    "two cores and 2 GB, version 2": (
        "0::/",
        {"cpu.max": "200000 100000", "memory.max": "2000000000"},
        (2, 2e9),
    ),
    "half a core": ("0::/", {"cpu.max": "50000 100000"}, (1, None)),
    "two and a half cores": ("0::/", {"cpu.max": "250000 100000"}, (2, None)),
    "the group above": (
        "0::/jobs/one",
        {"jobs/cpu.max": "300000 100000", "jobs/one/cpu.max": "max"},
        (3, None),
    ),
    "a container that sees its group as the top": (
        "0::/docker/0123",
        {"cpu.max": "400000 100000", "memory.max": "3000000000"},
        (4, 3e9),
    ),
    "two cores and 2 GB, version 1": (
        VERSION1,
        {
            "cpu,cpuacct/jobs/one/cpu.cfs_quota_us": "200000",
            "cpu,cpuacct/jobs/one/cpu.cfs_period_us": "100000",
            "memory/jobs/memory.limit_in_bytes": "2000000000",
            "memory/jobs/one/memory.limit_in_bytes": "9223372036854771712",
        },
        (2, 2e9),
    ),
    "no limit, version 1": (
        VERSION1,
        {"cpu/jobs/one/cpu.cfs_quota_us": "-1", "cpu/jobs/one/cpu.cfs_period_us": "100000"},
        (64, None),
    ),
    "half a core, both versions": (
        VERSION1 + "0::/\n",
        {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"},
        (1, None),
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_quotas_of_control_groups_count(name, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    groups, contents, (cores, memory) = GROUPS[name]
    files = {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{file}": text for file, text in contents.items()}}
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert machine.cores(tmp_path) == cores
    assert machine.memory(tmp_path) == (memory or machine.memory(tmp_path / "nothing"))


def test_what_slurm_grants_counts_and_what_is_no_number_does_not(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    for granted, cores in (("8", 8), ("128", 64), ("", 64), ("4(x2)", 64)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
        assert machine.cores(tmp_path) == cores


needs_linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")


@pytest.fixture
def one_core():
    """One core for this thread, which the test may run on alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@needs_linux
def test_no_more_processes_train_than_there_are_cores_to_run_on(one_core, monkeypatch):
    monkeypatch.setattr(dispatch, "FEW_STEPS", 0)
    cases = STUDIES["warm_start"].cases(profiles.profile("smoke", ["width=2"], 2))
    here, found = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children"), []
    before = here.read_text()
    show = Progress(show=lambda progress: found.append(here.read_text()) if progress.steps_done else None)
    made = plans.plan(case.run for case in cases)
    assert dispatch.execute(made, Store.of("smoke"), device="cpu", progress=show).finished
    assert set(found) == {before}


def within(tmp_path, **contents):
    """The beginning of a command for which the system's control groups say this."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("a view of its own on control groups takes root")
    for name, text in contents.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    mount = f"mount --bind '{tmp_path}' /sys/fs/cgroup && exec \"$@\""
    prefix = ("unshare", "-m", "sh", "-c", mount, "-")
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no mount of its own for a process")
    return prefix


@pytest.mark.slow
@needs_linux
def test_a_command_keeps_to_the_quota_of_its_container(tmp_path):
    prefix = within(tmp_path, cpu_max="50000 100000", memory_max="700000000")
    measured = repro("plan", *SMOKE, "--set", "width=2", "--measure", prefix=prefix)
    assert "1 process at once" in measured.stdout, measured.stderr
    wide = repro("run", *SMOKE, "--set", "width=256", prefix=prefix)
    assert wide.returncode == 1
    lines = wide.stderr.splitlines()
    assert len(lines) == 2
    assert all(
        re.search(r"the 0.7 GiB of memory here; width=\d+ with batch_size=16 would fit", x) for x in lines
    )


@pytest.fixture
def real_group():
    """The beginning of a command that enters a control group of one gigabyte."""
    folder = Path(f"/sys/fs/cgroup/memory/repro-{os.getpid()}")
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(10**9))
    except OSError:
        pytest.skip("no control group of one's own")
    yield ("sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "-")
    folder.rmdir()


@pytest.mark.slow
def test_what_is_said_to_fit_into_a_gigabyte_does(real_group):
    refused = repro("run", *SMOKE, "--set", "width=256", prefix=real_group)
    assert refused.returncode == 1, refused.stderr
    said = set(re.findall(r"the 0.9 GiB of memory here; width=(\d+) with batch_size=16", refused.stderr))
    [fits] = map(int, said)
    few = ("train=32", "pretraining_epochs=1", "tuning_epochs=1", "window=1")  # which takes as much memory
    done = repro("run", *SMOKE, *(f"--set={s}" for s in (f"width={fits}", *few)), prefix=real_group)
    assert done.returncode == 0, done.stderr


# What children take over

MEASURE = """
import json, os, sys
import torch  # it binds the first thread of this process
from repro.sweep import calibration, processes
children = processes.Children([processes.Child(1)])
trial = calibration.Engine("cpu", "float32", 1, 1).trial(runs[:1], 0.1)
rate = calibration.speed(children, trial).rate
tasks = [f"/proc/{child.process.pid}/task" for child in children.children]
threads = [int(thread) for folder in filter(os.path.isdir, tasks) for thread in os.listdir(folder)]
cores = [sorted(os.sched_getaffinity(thread)) for thread in threads]
print(json.dumps([rate, cores]))
children.close()
"""


@pytest.fixture(scope="module")
def measured():
    """Speed of a child of a script from standard input, bound to a core, and the cores of its threads."""
    environment = {"OMP_PROC_BIND": "close", "GOMP_CPU_AFFINITY": "0", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-W", "ignore"]
    done = subprocess.run(
        call,
        input=SCRIPT + MEASURE + LEAVE,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@needs_linux
def test_a_child_is_not_bound_to_the_core_of_the_thread_that_starts_it(measured):
    assert {tuple(cores) for cores in measured[1]} == {tuple(sorted(os.sched_getaffinity(0)))}


@pytest.mark.slow
def test_a_script_from_standard_input_measures_speed(measured):
    """Multiprocessing would import it anew in each process, as it does a file without a guard."""
    assert measured[0] > 0


@pytest.mark.slow
@needs_linux
def test_each_child_sees_the_gpu_at_its_place_among_those_that_may_be_used(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8932f937")
    with calibration.Engine("cuda", "bf16", slots=2, threads=1).children() as children:
        found = [Path(f"/proc/{c.process.pid}/environ").read_bytes().split(b"\0") for c in children.children]
        for child in children.children:
            child.process.kill()  # before it imports PyTorch for nothing
    assert b"CUDA_VISIBLE_DEVICES=2" in found[0]
    assert b"CUDA_VISIBLE_DEVICES=GPU-8932f937" in found[1]


RUN_IN_CHILDREN = """
outcome = dispatch.execute(plans.plan(runs), Store.of("smoke"), device="cpu", slots=2)
print(outcome.finished, outcome.failures)
"""
TRAPS = ["random.py", "inspect.py", "torch.py", "numpy.py", "signal.py"]


@pytest.mark.slow
def test_children_import_nothing_from_where_one_stands_but_this_package(tmp_path):
    """As in a checkout in which people work, where the command is installed from it.

    The process that starts them does without PyTorch: it would take half a gigabyte there, and seconds before
    the first child starts. (Where there is a GPU, PyTorch says how many.)
    """
    shutil.copytree(ROOT / "repro", tmp_path / "repro", ignore=shutil.ignore_patterns("__pycache__"))
    for name in TRAPS:
        (tmp_path / name).write_text("raise SystemExit(7)")
    load = f"import importlib, sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport repro\ndel sys.path[0]\n"
    which = "import repro.sweep.dispatch\nprint(repro.sweep.dispatch.__file__, 'torch' in sys.modules)\n"
    said = python(load + SCRIPT + RUN_IN_CHILDREN + which, cwd=tmp_path, PYTHONPATH="")
    assert said.split() == [
        "True",
        "[]",
        str(tmp_path / "repro" / "sweep" / "dispatch.py"),
        str(torch.cuda.is_available()),
    ]


def test_a_child_that_is_killed_while_its_speed_is_measured_counts_as_one_without_memory():
    class Shot(processes.Child):
        def start(self, trial):
            super().start(trial)
            self.process.kill()

    engine = calibration.Engine("cpu", "float32", slots=1, threads=1)
    with contextlib.closing(processes.Children([Shot(1)])) as children:
        assert calibration.speed(children, engine.trial([], 0.1)) is None
    assert Store.of("smoke").ids() == set()
