"""Trains one batch of a plan and keeps what comes of it; the inside of a child process."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import signal
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import numpy
import torch

from repro import cpu
from repro.config import HALF, InputError, Run, check_engine
from repro.data import datasets
from repro.data.npz import Images
from repro.data.sampling import portions, steps_per_epoch
from repro.store import files, records
from repro.store.records import Store
from repro.sweep import leases, messages
from repro.sweep.costs import training_bytes
from repro.sweep.messages import LAST, End, Ended, Job, Message, Report
from repro.sweep.plans import Batch, Trajectory, left
from repro.training import models, probes
from repro.training.loop import Stopped, train_population
from repro.training.populations import Member, Population, resident
from repro.training.snapshots import Snapshot


def choose_device(name: str) -> tuple[str, int]:
    """`cpu` or `cuda`, and the number of GPUs to use; raises `InputError` where there is none."""
    check_engine(name, "auto")
    gpus = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "cuda" and not gpus:
        raise InputError("no CUDA device here: choose auto or cpu")
    return ("cuda" if gpus else "cpu"), gpus


def choose_precision(device: str, name: str) -> str:
    """The precision asked for; for `auto` bf16 on a GPU, and float32 on a CPU (`repro.cpu`)."""
    check_engine("auto", name)
    return name if name != "auto" else "bf16" if device == "cuda" else "float32"


def serve(descriptor: int) -> None:
    """Train the jobs that come along a pipe until it closes; stops where told to, or alone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they reach the parent too, which says when to stop
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    pipe = Connection(descriptor)

    def tell(message: Message) -> None:
        with contextlib.suppress(OSError):  # the parent is gone: `poll` says so at the end of the epoch
            pipe.send(message)

    warnings.showwarning = lambda message, *_, **__: tell(messages.Warned(str(message)))
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while (job := pipe.recv()) is not None:
            try:
                ended = train_batch(job, tell, pipe.poll)
            except InputError as error:
                ended = _failed(job.batch, str(error), tell)
            pipe.send(ended)
            if ended.end in LAST:
                return


def train_batch(job: Job, report: Report, stop: Callable[[], bool]) -> Ended:
    """Train what is left of a batch; leaves records of wanted runs and snapshots of parents.

    Runs that fail together are to be tried again apart: each by itself after an
    error, by halves where memory was short.
    """
    store = Store(Path(job.folder))
    device, _ = choose_device(job.device)
    job = dataclasses.replace(job, device=device, precision=choose_precision(device, job.precision))
    try:
        with leases.held(store.leases, (run.id for run in job.batch.whole.runs)):
            return _train_leased(job, store, report, stop)
    except leases.Busy as busy:
        return Ended(End.BUSY, str(busy))
    except OSError as error:  # of the leases
        return _failed(job.batch, error, report)


def _train_leased(job: Job, store: Store, report: Report, stop: Callable[[], bool]) -> Ended:
    needed = {name for name in job.needed if not _there(name, job, store)}  # no other sweep was faster
    ended, part = Ended(End.DONE), left(job.batch.whole, store, needed)
    try:
        if part is not None and (unfinished := _train(part, job, store, report, stop)) is not None:
            return unfinished
    except InputError:
        raise
    except OSError as error:
        ended = _failed(part, error, report)
    except Exception as error:
        starved, together = out_of_memory(error), len(part.trajectories)
        if not starved and together == 1:
            traceback.print_exc()
        traceback.clear_frames(error.__traceback__)  # they hold the networks
        eager, size = job.layout.compiled and not starved, -(-together // 2) if starved else 1
        if eager or together > 1:
            store.checkpoint(part.id).unlink(missing_ok=True)
            what = f"{together} networks at once need more memory than there is" if starved else error
            way = "without a compiler" if eager else f"{size} at a time"
            warnings.warn(f"batch {part.id}: {line(what)}; now {way}", stacklevel=2)
            return Ended(End.EAGER) if eager else Ended(End.SPLIT, size=size)
        run, device = part.trajectories[0].longest, torch.device(job.device)
        _failed(part, _too_large(run, device) if starved else error, report)
        return Ended(End.SPOILT)
    left(job.batch.whole, store, set())  # removes checkpoints that this made useless
    return ended


def _there(name: str, job: Job, store: Store) -> bool:
    return store.sound(name) is not None if name in job.wanted else store.snapshot(name).exists()


def _failed(part: Batch, error: object, report: Report) -> Ended:
    if isinstance(error, OSError):
        error = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    report(messages.Failed(line(error), tuple(run.id for run in part.runs)))
    return Ended(End.FAILED)


def line(error: object) -> str:
    """What went wrong, in one line."""
    kind = f"{type(error).__name__}: " if isinstance(error, Exception) else ""
    return " ".join(f"{kind}{error}".split())[:300]


def out_of_memory(error: Exception) -> bool:
    """Whether it is for want of memory, of the GPU or of the host: there PyTorch has no class for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _too_large(run: Run, device: torch.device) -> str:
    """That one network is too large, and which one would not be."""
    if run.model.code is not None:
        return f"a network of {run.model.code.name} needs more than the {_gib(device)} of memory here"
    sizes = [(run.model.width, run.batch_size >> i) for i in range(1, 8) if run.batch_size >> i >= 8]
    sizes += [(run.model.width >> i, run.batch_size) for i in range(1, 31) if run.model.width >> i]
    fitting = next((size for size in sizes if _fits(run, *size, device)), None)
    advice = f"; width={fitting[0]} with batch_size={fitting[1]} would fit" if fitting else ""
    return (
        f"a network of width {run.model.width} with batches of {run.batch_size} needs more than the "
        f"{_gib(device)} of memory here{advice}"
    )


def _gib(device: torch.device) -> str:
    return f"{_memory(device) / 2**30:,.1f} GiB"


def _fits(run: Run, width: int, batch_size: int, device: torch.device) -> bool:
    """Whether a network of this size finds the memory it needs: on a GPU by a step, else by its weights."""
    model = dataclasses.replace(run.model, width=width)
    channels, classes, side = _shape(datasets.images(run.dataset))
    if 2 * training_bytes(model, channels, classes, side) > _memory(device):
        return False
    if device.type == "cpu":  # where trying may end in being killed
        return width < run.model.width
    try:
        with torch.device("meta"):
            network = models.network(model, channels, classes, side)
        network.to_empty(device=device)
        optimizer = torch.optim.Adam(network.parameters())
        network(torch.zeros(batch_size, channels, side, side, device=device)).sum().backward()
        optimizer.step()
    except torch.OutOfMemoryError:
        return False
    return True


def _shape(images: Images) -> tuple[int, int, int]:
    """Channels, classes and side, on which a network's shape depends."""
    return images.x_train.shape[3], images.classes, images.x_train.shape[1]


def _memory(device: torch.device) -> int:
    """Bytes of memory of the GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _train(batch: Batch, job: Job, store: Store, report: Report, stop: Callable[[], bool]) -> Ended | None:
    """Train the batch from its parents' snapshots; None, or why it could not come to its end."""
    device, images = torch.device(job.device), datasets.images(batch.trajectories[0].longest.dataset)
    environment = {
        "population": len(batch.trajectories),
        "grouped": job.layout.grouped,
        "compiled": False,
        "layout": job.layout.layout,
        "precision": job.precision,
        "device": device_name(device),
        "threads": torch.get_num_threads() if job.device == "cpu" else None,
        "versions": versions(),
        "commit": records.commit(),
        "data": images.fingerprint,
    }

    def keep(trajectory: Trajectory, snapshot: Snapshot, ended: bool, epoch: int) -> None:
        for run in trajectory.runs:
            epochs = run.stages[-1].epochs
            if epochs == epoch or (ended and epochs > epoch):
                own = snapshot.of(run) if epoch else snapshot  # epoch 0: its parent diverged
                if run.id in job.parents:
                    own.save(store.snapshot(run.id))
                if run.id in job.wanted:
                    outcome, measured = _outcome(own), _measured(run, own, device)
                    if store.write(run, **outcome, **measured, **environment):
                        report(messages.Recorded(run.id))
                        if (last := outcome["diverged"]) is not None:
                            where = f"epoch {last} of stage {len(outcome['curves'])}"
                            told = f"run {run.id} diverged: no finite loss in {where}; recorded so"
                            report(messages.Warned(told))
                    elif found := store.difference(run, outcome["diverged"], outcome["curves"]):
                        report(messages.Differs(found))

    starts = {name: _start(name, batch, store) for name in batch.starts}
    if lacking := sorted(name for name, start in starts.items() if start is None):
        return Ended(End.LACKING, f"the network in which run {lacking[0]} ended is not there")
    trained, members = [], []
    for trajectory in batch.trajectories:
        parent = trajectory.longest.parent
        start = starts[parent.id] if parent is not None else None
        if start is not None and start.diverged is not None:
            keep(trajectory, start, ended=True, epoch=0)  # nothing to go on from
            continue
        epochs = frozenset(run.stages[-1].epochs for run in trajectory.runs)
        tested = frozenset().union(*(run.tested for run in trajectory.runs))
        trained.append(trajectory)
        members.append(Member(trajectory.longest, start, epochs, tested))

    checkpoint = store.checkpoint(batch.id)
    if members:
        run = members[0].run
        if len(members) * training_bytes(run.model, *_shape(images)) > _memory(device):
            raise MemoryError  # now, not when the system begins to kill for it
        steps, last = len(members) * steps_per_epoch(run), run.stages[-1].epochs

        def on_epoch(epoch: int, accuracies: list[float]) -> None:
            mean = sum(accuracies) / len(accuracies)
            report(messages.EpochDone(steps, f"{epoch}/{last}", mean))

        def on_begin(population: Population) -> None:
            environment["compiled"] = population.compiled

        training = train_population(
            members,
            device,
            job.precision,
            grouped=job.layout.grouped,
            compiled=job.layout.compiled,
            layout=job.layout.layout,
            checkpoint=checkpoint,
            stop=stop,
            on_begin=on_begin,
            on_epoch=on_epoch,
        )
        try:
            for p, epoch, snapshot in training:
                keep(trained[p], snapshot, members[p].ended, epoch)
        except Stopped:
            return Ended(End.STOPPED)
    checkpoint.unlink(missing_ok=True)
    return None


def _start(name: str, batch: Batch, store: Store) -> Snapshot | None:
    """The network in which a parent ended; None where it is not there, or was damaged and set aside."""
    path, run = store.snapshot(name), batch.trajectories[0].longest
    images = datasets.images(run.dataset)
    with torch.device("meta"):
        network = models.network(run.model, *_shape(images))
    shapes = {key: tensor.shape for key, tensor in network.member(0).items()}
    try:
        snapshot = Snapshot.load(path)
        if {key: tensor.shape for key, tensor in snapshot.state.items()} != shapes:
            raise files.Damaged(f"{path}: not a network of this shape")
    except FileNotFoundError:
        return None
    except files.Damaged as damage:
        warnings.warn(f"{damage}; set aside as {files.set_aside(path)}", stacklevel=2)
        return None
    return snapshot


def _measured(run: Run, snapshot: Snapshot, device: torch.device) -> dict[str, dict[str, float]]:
    """What the run's probes find in its last network, none where it diverged."""
    if not run.probes or snapshot.diverged is not None:
        return {"probes": {}}
    images = datasets.images(run.dataset)
    x, y = resident(images, images.x_train, images.y_train, device)
    old = torch.zeros(len(y), dtype=torch.bool, device=device)
    old[torch.from_numpy(portions(images.y_train, HALF, run.split_seed))] = True
    found = probes.measure(run.probes, snapshot.state, run.model, x, y, images.classes, run.batch_size, old)
    return {"probes": {name: value if math.isfinite(value) else None for name, value in found.items()}}


def _outcome(snapshot: Snapshot) -> dict:
    curves = [
        {name: [v if math.isfinite(v) else None for v in values] for name, values in curve.items()}
        for curve in snapshot.curves
    ]
    return {
        "diverged": snapshot.diverged,
        "curves": curves,
        "seconds": round(snapshot.seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of what a result can depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    return found | cpu.versions()


def device_name(device: torch.device) -> str:
    """The processor's name as its maker writes it; of a CPU also what vectors PyTorch finds, as one name
    stands for several.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
