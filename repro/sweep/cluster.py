"""Runs a plan on a Dask cluster: each thread of a worker has a child, the process that trains its jobs.

Dask brings jobs to machines and notices if a machine is lost. All else is as on
one machine: a child trains runs only while it holds their leases, and writes
records to the store, which all machines must share. A run that is trained twice
is recorded once.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import pickle
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from repro.config import InputError
from repro.store.records import ROOT, Store, results_folder
from repro.sweep import machine
from repro.sweep.messages import End, Ended, Job, Report
from repro.sweep.processes import BEAT, Child, Children, Place

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 10.0  # seconds to wait for a scheduler to answer
JOBS = 8  # of SLURM at a time, if `--jobs` does not say

_own = threading.local()  # on a worker, each thread's child
_numbers = itertools.count()  # on a worker, numbers for its threads, which share out the GPUs
_stopping: set[str] = set()  # on a worker, tokens of the sweeps that were asked to stop


def place(on: str, jobs: int | None = None) -> Place:
    """The cluster that `--on` names, `slurm` or a scheduler's address; raises `InputError` for all else."""
    if on != "slurm" and not on.startswith(("tcp://", "tls://")):
        raise InputError(f"--on takes slurm or an address such as tcp://localhost:8786, not {on!r}")
    return lambda stopping: connected(on, jobs)


@contextlib.contextmanager
def connected(on: str, jobs: int | None = None) -> Iterator[Cluster]:
    """Connect to the cluster while the block lasts; raises `InputError` if that is not possible."""
    try:
        import distributed  # Dask is optional
    except ImportError:
        raise InputError('--on needs Dask: pip install "repro[cluster]"') from None
    with contextlib.ExitStack() as stack:
        if on == "slurm":
            cluster = stack.enter_context(_slurm())
            cluster.adapt(minimum_jobs=0, maximum_jobs=jobs or JOBS)
            client = distributed.Client(cluster, security=cluster.security)
        else:
            try:
                client = distributed.Client(on, timeout=PATIENCE)
            except (OSError, ValueError) as error:
                raise InputError(f"no Dask scheduler answers at {on} ({type(error).__name__})") from error
        yield Cluster(stack.enter_context(client))


def _slurm():
    """A scheduler in this process whose workers are jobs of SLURM, one task each, over TLS.

    Dask's own configuration (`jobqueue.slurm`) sets the queue, account, walltime,
    cores, memory and GPU of a job. Raises `InputError` if SLURM is missing or
    refuses such a job.
    """
    if not shutil.which("sbatch"):
        raise InputError("there is no sbatch here: --on slurm is for a machine that submits to SLURM")
    import dask  # not at the top, because Dask is optional
    from distributed import Security

    before = signal.getsignal(signal.SIGINT)
    from dask_jobqueue import SLURMCluster

    signal.signal(signal.SIGINT, before)  # the import had made an interrupt end this process, with status 0

    folder = results_folder() / ".dask"  # certificates and logs, where all machines see them
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    setting = dask.config.get("jobqueue.slurm", {})
    paths = f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"
    cluster = SLURMCluster(
        cores=1,  # one thread in each worker, so one child
        processes=1,
        job_cpu=setting.get("job-cpu") or setting.get("cores") or 4,
        memory=setting.get("memory") or "16GB",
        walltime=setting.get("walltime") or "04:00:00",
        security=Security.temporary(),  # the scheduler listens on all interfaces
        shared_temp_directory=str(folder),
        log_directory=setting.get("log-directory") or str(folder),
        scheduler_options={"dashboard_address": "127.0.0.1:0"},
        # Dask sets no limit: the memory is taken by the child, not by the worker.
        worker_extra_args=["--memory-limit", "0", "--dashboard-address", "127.0.0.1:0"],
        job_script_prologue=[paths, *(setting.get("job-script-prologue") or ())],
        python=sys.executable,
    )
    # `adapt`, called next, would not show that SLURM refuses a job.
    asked = subprocess.run(
        ["sbatch", "--test-only"], input=cluster.job_script(), capture_output=True, text=True
    )
    if asked.returncode:
        cluster.close()
        said = " ".join(asked.stderr.split())[:300]
        raise InputError(f"SLURM refuses the job: {said}; see jobqueue.slurm in Dask's configuration")
    return cluster


class Cluster:
    """The workers of a cluster, whose number may change; Dask queues any number of jobs for them."""

    slots = math.inf

    def __init__(self, client: Client) -> None:
        self.client, self.token = client, uuid.uuid4().hex
        self.futures, self.news = {}, queue.SimpleQueue()
        client.subscribe_topic(self.token, lambda event: self.news.put(pickle.loads(event[1])))

    def start(self, job: Job) -> None:
        key = f"{job.part.id}-{uuid.uuid4().hex[:8]}"
        self.futures[self.client.submit(train, job, self.token, key=key, pure=False)] = job

    def listen(self, hear: Report) -> Iterator[tuple[Job, Ended]]:
        time.sleep(BEAT)
        done = [future for future in self.futures if future.done()]
        while not self.news.empty():  # what the jobs in `done` have sent is there by now
            hear(self.news.get())
        for future in done:
            lost = Ended(End.KILLED, f"its worker was lost ({future.status})")
            yield self.futures.pop(future), future.result() if future.status == "finished" else lost
        if gone := self.client.status not in ("running", "connecting"):
            warnings.warn("the scheduler is gone", stacklevel=1)
            self.slots = 0
        if not self.slots:  # jobs that no worker has begun need not begin
            begun = {} if gone else self.client.processing()
            keys = set(itertools.chain(*begun.values()))
            for future in [future for future in self.futures if future.key not in keys]:
                yield self.futures.pop(future), Ended(End.STOPPED)

    def stop(self) -> None:
        self.slots = 0
        self.client.run(stop, self.token)


def stop(token: str) -> None:
    """On a worker: have the children of the sweep with this token stop at the end of their epoch."""
    _stopping.add(token)


def train(job: Job, token: str) -> Ended:
    """On a worker: train a job of the sweep with this token in this thread's child; returns how it ended."""
    from distributed import get_worker

    worker, leases = get_worker(), Store(Path(job.folder)).leases
    if token in _stopping:
        return Ended(End.STOPPED)
    if not leases.is_dir():
        return Ended(End.LACKING, f"{job.folder} is not there on {worker.address}: workers must share it")
    if not hasattr(_own, "children"):
        number, threads = next(_numbers), worker.state.nthreads
        # The child of a worker's only thread takes the first GPU without being told.
        gpus = machine.gpus("auto") if threads > 1 and job.device != "cpu" else 0
        child = Child(max(1, machine.cores() // threads), number % gpus if gpus else None)
        _own.children = Children([child])
    _own.children.start(job)
    while True:
        for _, ended in _own.children.listen(lambda news: worker.log_event(token, pickle.dumps(news))):
            return ended
        if token in _stopping:
            _own.children.stop()
