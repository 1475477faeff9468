"""Trains a part of a group, records its runs, and keeps the final networks that other runs start from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import platform
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy
import torch

from repro import cpu
from repro.config import HALF, InputError, Model, Run, check_engine
from repro.data import datasets
from repro.data.datasets import steps_per_epoch
from repro.data.sampling import portions
from repro.store import files, records
from repro.store.records import Store
from repro.sweep import leases, machine, messages, plans
from repro.sweep.costs import PROCESS, training_bytes
from repro.sweep.messages import End, Ended, Job, Report
from repro.sweep.plans import Part
from repro.training import models, probes
from repro.training.loop import Stopped, train_population
from repro.training.populations import Member, resident
from repro.training.snapshots import Snapshot


@dataclass(frozen=True)
class Processor:
    """What networks train on."""

    device: str  # cpu or cuda
    name: str
    memory: int  # bytes: all of the GPU's, or those that this process may use

    @classmethod
    def of(cls, device: str) -> Processor:
        """The first GPU, or the CPU; raises `InputError` if the one asked for is not available."""
        if not machine.gpus(device):
            return cls("cpu", device_name(torch.device("cpu")), machine.memory())
        found = torch.device("cuda")
        return cls("cuda", device_name(found), torch.cuda.get_device_properties(found).total_memory)


def choose_precision(device: str, name: str) -> str:
    """The precision asked for; for `auto` bf16 on a GPU, and float32 on a CPU (`repro.cpu`)."""
    check_engine("auto", name)
    return name if name != "auto" else "bf16" if device == "cuda" else "float32"


def train_part(
    job: Job,
    report: Report,
    stop: Callable[[], bool],
    processor: Processor | None = None,
    train: Callable = train_population,
) -> Ended:
    """Train what is left of a part, record the wanted runs, and keep the networks that others start from.

    Returns how that ended. If several networks fail together, they are to be tried again
    separately (`End.SPLIT`): one by one after an error, in halves if memory was short. Passes on
    `InputError`. Without `processor`, the job names the device; `train` is like `train_population`.
    """
    store, whole = Store(Path(job.folder)), job.part.whole
    processor = processor or Processor.of(job.device)
    job = dataclasses.replace(
        job, device=processor.device, precision=choose_precision(processor.device, job.precision)
    )
    train = functools.partial(train, stop=stop)

    def there(name: str) -> bool:
        return store.recorded(name) if name in job.wanted else store.snapshot(name).exists()

    try:
        with leases.held(store.leases, (run.id for run in whole.runs)), _threads(whole.runs[0].model):
            # Another sweep may have been faster, or have left a checkpoint.
            part = plans.remaining(whole, store, {name for name in job.needed if not there(name)})
            ended = Ended(End.DONE) if part is None else _attempt(part, job, store, report, processor, train)
            plans.discard_checkpoints([whole], store, job.wanted, job.parents)
            return ended
    except leases.Busy as busy:
        return Ended(End.BUSY, str(busy))
    except OSError as error:  # a lease could not be written
        return Ended(End.FAILED, line(error))


@contextlib.contextmanager
def _threads(model: Model) -> Iterator[None]:
    """One CPU thread for a custom network: more slow down small ones, and change the last bits of results."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if model.code else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _attempt(
    part: Part, job: Job, store: Store, report: Report, processor: Processor, train: Callable
) -> Ended:
    """Train a part; if that fails, say in how small parts to try again, or that it is not to be tried."""
    try:
        return _train(part, job, store, report, processor, train)
    except InputError:
        raise
    except OSError as error:
        return Ended(End.FAILED, line(error))
    except Exception as error:
        starved, together = out_of_memory(error), len(part.trajectories)
        if not starved and together == 1:
            traceback.print_exc()
        traceback.clear_frames(error.__traceback__)  # its frames keep the networks in memory
        if together == 1:
            lame = part.trajectories[0].longest
            return Ended(End.FAILED, _too_large(lame, processor.memory) if starved else line(error))
        store.checkpoint(part.id).unlink(missing_ok=True)
        size, why = 1, line(error)
        if starved:
            size, why = -(-together // 2), f"{together} networks at once need more memory than there is"
        warnings.warn(f"group {part.id}: {why}; now {size} at a time", stacklevel=2)
        return Ended(End.SPLIT, size=size)


def line(error: Exception) -> str:
    """An error in one line, cut after 300 characters."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or said
    return " ".join(said.split())[:300]


def out_of_memory(error: Exception) -> bool:
    """Whether memory was short, on the GPU or on the host, for which PyTorch has no class of error."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _too_large(run: Run, memory: int) -> str:
    """A line that says that one network needs more than `memory` bytes, and what width, if any, would fit."""
    model = run.model
    here = f"more than the {memory / 2**30:,.1f} GiB of memory here"
    if model.code is not None:
        return f"a network of {model.code.name} needs {here}"
    said = f"a network of width {model.width} with batches of {run.batch_size} needs {here}"
    for width in (model.width >> i for i in range(1, model.width.bit_length())):
        small = dataclasses.replace(run, model=dataclasses.replace(model, width=width))
        if PROCESS + 2 * training_bytes(small) <= memory:
            return f"{said}; width={width} with batch_size={run.batch_size} would fit"
    return said


def _train(
    part: Part, job: Job, store: Store, report: Report, processor: Processor, train: Callable
) -> Ended:
    """Train a part from its parents' snapshots and keep its results; `End.LACKING` if one is missing."""
    first = part.trajectories[0].longest
    starts = {name: _start(name, first, store) for name in part.starts}
    if lacking := sorted(name for name, start in starts.items() if start is None):
        return Ended(End.LACKING, f"the network in which run {lacking[0]} ended is not there")
    environment = {
        "population": len(part.trajectories),
        "grouped": job.layout.grouped,
        "compiled": False,
        "layout": "contiguous" if first.model.code else "channels_last",  # of images and weights in memory
        "precision": job.precision,
        "device": processor.name,
        "threads": torch.get_num_threads() if job.device == "cpu" else None,
        "versions": versions(),
        "commit": records.commit(),
        "data": datasets.images(first.dataset).fingerprint,
    }
    members = []
    for *others, run in (trajectory.runs for trajectory in part.trajectories):
        start = starts[run.parent.id] if run.parent is not None else None
        if start is None or start.diverged is None:
            members.append(Member(run, start, tuple(others)))
            continue
        for lost in (*others, run):  # a parent that diverged leaves nothing to train
            _keep(lost, start, job, store, report, environment)

    checkpoint = store.checkpoint(part.id)
    if members:
        if PROCESS + len(members) * training_bytes(first, job.device) > processor.memory:
            raise MemoryError  # before the system kills this process for it
        steps, last = len(members) * steps_per_epoch(first), first.stages[-1].epochs
        try:
            for _, run, snapshot in train(
                members,
                torch.device(job.device),
                job.precision,
                grouped=job.layout.grouped,
                compiled=job.layout.compiled,
                checkpoint=checkpoint,
                on_begin=lambda population: environment.update(compiled=population.compiled),
                on_epoch=lambda epoch, accuracies: report(
                    messages.EpochDone(steps, f"{epoch}/{last}", sum(accuracies) / len(accuracies))
                ),
            ):
                _keep(run, snapshot, job, store, report, environment)
        except Stopped:
            return Ended(End.STOPPED)
    checkpoint.unlink(missing_ok=True)
    return Ended(End.DONE)


def _keep(run: Run, end: Snapshot, job: Job, store: Store, report: Report, environment: dict) -> None:
    """Save a run's final network if others start from it, and its record if that is wanted."""
    if run.id in job.parents:
        end.save(store.snapshot(run.id))
    if run.id not in job.wanted:
        return
    curves = [{name: [*map(_finite, values)] for name, values in curve.items()} for curve in end.curves]
    content = {
        "diverged": end.diverged,
        "curves": curves,
        "seconds": round(end.seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **_measured(run, end, torch.device(job.device)),
        **environment,
    }
    if store.write(run, **content):
        if end.diverged is not None:
            where = f"epoch {end.diverged} of stage {len(curves)}"
            report(messages.Warned(f"run {run.id} diverged: no finite loss in {where}; recorded so"))
    elif found := store.difference(run, end.diverged, curves):
        report(messages.Warned(found))


def _finite(value: float) -> float | None:
    """The value, or None if it is not finite, which JSON cannot express."""
    return value if math.isfinite(value) else None


def _start(name: str, run: Run, store: Store) -> Snapshot | None:
    """The final network of parent `name`, for `run`; None if missing, or if damaged and now set aside."""
    path, images = store.snapshot(name), datasets.images(run.dataset)
    _, _, side, channels = images.x_train.shape
    with torch.device("meta"):
        network = models.network(run.model, channels, images.classes, side)
    shapes = {key: tensor.shape for key, tensor in network.member(0).items()}
    try:
        snapshot = Snapshot.load(path)
        if {key: tensor.shape for key, tensor in snapshot.state.items()} == shapes:
            return snapshot
        raise files.Damaged(f"{path}: not a network of this shape")
    except FileNotFoundError:
        return None
    except files.Damaged as damage:
        warnings.warn(f"{damage}; set aside as {files.set_aside(path)}", stacklevel=2)
        return None


def _measured(run: Run, snapshot: Snapshot, device: torch.device) -> dict[str, dict[str, float]]:
    """The values of the run's probes on its final network; empty if it has no probes or diverged."""
    if not run.probes or snapshot.diverged is not None:
        return {"probes": {}}
    images = datasets.images(run.dataset)
    x, y = resident(images, images.x_train, images.y_train, device)
    old = torch.zeros(len(y), dtype=torch.bool, device=device)
    old[torch.from_numpy(portions(images.y_train, HALF, run.split_seed))] = True
    found = probes.measure(run.probes, snapshot.state, run.model, x, y, images.classes, run.batch_size, old)
    return {"probes": {name: _finite(value) for name, value in found.items()}}


def versions() -> dict[str, str]:
    """Versions of the software on which a result can depend."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    return found | cpu.versions()


def device_name(device: torch.device) -> str:
    """The processor's name; for a CPU with its vector instructions, in which CPUs of one name may differ."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
