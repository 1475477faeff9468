"""What `benchmarks.gpu` measures and checks: `python -m benchmarks.gpu_tasks '{"NAME": {}}'`.

A finding is a line of JSON on standard output; everything else goes to standard error. Without a GPU the
same work is done at toy size.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import inspect
import itertools
import json
import math
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks import training
from repro import cpu, profiles
from repro.config import Dataset, Model, Run, Stage
from repro.data import datasets
from repro.questions.warm_start import warm_start
from repro.store.records import Store, commit
from repro.sweep import calibration, plans, trainer
from repro.sweep.messages import End, Job
from repro.sweep.plans import Layout, Plan
from repro.sweep.trials import turn
from repro.training import populations
from repro.training.populations import Member, Population

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
PRECISION = trainer.choose_precision(DEVICE.type, "auto")
DEPTH, BATCH, STEPS, SECONDS = (2, 128, calibration.GPU_STEPS, 1.2) if CUDA else (1, 16, 4, 0.05)
NARROW, MANY, TESTS, BATCHES = (16, 10, 10_000, (500, 2500)) if CUDA else (4, 2, 200, (50, 100))
WAYS = ("grouped", "compiled")  # to train: what `Population` takes, and `Layout` keeps
CLASSES = {  # of kernels, by the first pattern that their name holds
    "copies": "nchwtonhwc|nhwctonchw|memcpy|memset|copy|catarray|transpose",
    "optimiser": "multi_tensor|adam|foreach",
    "compiled": "^triton_",
    "batch norm": "batch_?norm|bn_fw|bn_bw|cudnn::bn",
    "around convolutions": "slicec|tensortransform|converttensor|splitk<",  # cuDNN's copies and last sums
    "convolutions": "conv|xmma|cudnn|grad2d|implicit|cutlass|fprop|wgrad|dgrad|gemm|nvjet",
    "elementwise": "elementwise|vectorized|relu|threshold|reduce|softmax|nll|index|gather|fill|sum|pool",
}


class NotAvailable(Exception):
    """This code has no such way to train."""


noise = functools.cache(calibration.noise)


def noise_runs(
    folder: str, width: int, members: int, steps: int = STEPS, dataset: Dataset | None = None
) -> list[Run]:
    """So many runs on noise of CIFAR-10's size, of so many steps an epoch."""
    dataset = dataset or noise(folder, BATCH * steps)
    model, stages = Model(width, DEPTH), (Stage(1000),)
    return [Run(dataset, model, stages, BATCH, init_seed=s, order_seed=s) for s in range(members)]


def population(runs: Sequence[Run], way: dict) -> Population:
    """The runs as a population that trains in this way, of `WAYS`."""
    asked = {key: way[key] for key in WAYS if key in way}
    if lacking := asked.keys() - inspect.signature(Population).parameters.keys():
        raise NotAvailable(f"not available: Population takes no {', '.join(lacking)}")
    made = Population([Member(run) for run in runs], DEVICE, PRECISION, **asked)
    if way.get("compiled") and not made.compiled:
        raise NotAvailable("not compiled: the log says why")
    return made


def allocated() -> float:
    """MiB of the GPU that tensors take now."""
    return round(torch.cuda.memory_allocated() / 2**20, 1) if CUDA else 0.0


def clean() -> None:
    """Free the memory of a GPU; that of a CPU is freed with its tensors."""
    if CUDA:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# ---- the machine ----


def machine(tell: Callable[..., None]) -> None:
    """Its name, and what its rates are measured against."""
    matrix = training.matrix_rate(DEVICE, *(("bf16",) if CUDA else ("float32", 256)))
    with tempfile.TemporaryDirectory() as folder:
        dataset = calibration.noise(folder, 4)
        networks = {w: Run(dataset, Model(w, DEPTH), (Stage(1),), 2) for w in (4, 8, 16, 64)}
        operations = {width: training.operations(run) for width, run in networks.items()}
    found = {"cuda": CUDA, "device": trainer.device_name(DEVICE), "cores": os.cpu_count(), "depth": DEPTH}
    found |= {"versions": trainer.versions(), "commit": commit(), "batch_size": BATCH}
    tell(**found, matrix_rate=matrix, operations=operations)  # operations of a step, an image, by width


# ---- the table of speeds ----


class PlainBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2, self.shortcut = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs), nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def plain_network(width: int) -> nn.Module:
    """The ResNet as anyone writes it, nothing of this project in it."""
    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for i, block in itertools.product(range(4), range(DEPTH)):
        layers.append(PlainBlock(channels, width << i, 2 if i > 0 and block == 0 else 1))
        channels = width << i
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def replayed(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph; keeps all memory that the step works on, which the graph alone does not."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def call(kept: Callable[[], None] = step) -> None:
        graph.replay()

    return call


def plain(spec: dict, _: str) -> Callable[[], int]:
    """An epoch of one network by an ordinary loop, its data on the device; gives the images it saw."""
    bf16, compiled = spec["way"] != "float32", bool(spec.get("compiled"))
    x = torch.randn(BATCH * STEPS, 3, 32, 32, device=DEVICE)
    y = torch.randint(10, (len(x),), device=DEVICE)
    network = plain_network(spec["width"]).to(DEVICE)
    if bf16:
        network, x = (thing.to(memory_format=torch.channels_last) for thing in (network, x))
    graph = CUDA and bf16
    optimizer = torch.optim.Adam(network.parameters(), fused=True, capturable=graph)
    forward = torch.compile(network, dynamic=False) if compiled else network
    index = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(forward(x[index]), y[index])
        loss.backward()
        optimizer.step()

    call = replayed(step) if graph else step

    def epoch() -> int:
        for batch in torch.randperm(len(x), device=DEVICE).view(-1, BATCH):
            index.copy_(batch)
            call()
        if CUDA:
            torch.cuda.synchronize()
        return len(x)

    return epoch


def table(tell: Callable[..., None], specs: list[dict], seconds: float = SECONDS) -> None:
    """Training images a second in each way, in order; ends after one that failed, as CUDA may be unsound."""
    folder = tempfile.TemporaryDirectory()
    for spec in specs:
        clean()
        if spec.get("free"):  # the compiler may choose by the clock, and differ in another process
            os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "0"
        try:
            tell(**_measured(spec, folder.name, seconds))
        except NotAvailable as error:
            tell(failed=str(error))
        except Exception as error:
            tell(failed=trainer.line(error))
            return


def _measured(spec: dict, folder: str, seconds: float) -> dict:
    start, tests = time.perf_counter(), {}
    if spec["way"] == "ours":
        made = population(noise_runs(folder, spec["width"], spec["members"]), spec)
        images, seen = made.batches.numel(), spec["members"] * len(made.y_test)
        epoch = lambda: made.train_epoch() and images  # noqa: E731
    else:
        made, epoch = None, plain(spec, folder)
    images = epoch()
    first = time.perf_counter() - start
    rate = turn(epoch, seconds)
    memory = torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0
    if made is not None and CUDA and made.step.graph is None:
        tests["eager"] = True  # it was not captured: the log says why
    if made is not None and spec.get("tests"):
        for _ in range(4):  # a capture at the fourth
            made.test_accuracy()
        tests["tests"] = round(turn(lambda: made.test_accuracy() and seen, seconds / 4))
    if "torch._dynamo" in sys.modules:
        tests["graphs"] = sys.modules["torch._dynamo"].utils.counters["stats"]["unique_graphs"]
    return {"rate": rate, "memory": round(memory, 2), "first": round(first - images / rate, 1), **tests}


# ---- the checks ----


def repeats(tell: Callable[..., None], compiled: bool, copy: str, cache: str) -> None:
    """A tiny sweep, each network alone, on streams and grouped: hashes of its curves, resumed and not."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # nothing learned from another process
    os.environ.pop("TRITON_CACHE_DIR", None)
    with tempfile.TemporaryDirectory() as folder:
        images, tests, batch = (640, 100, 64) if CUDA else (16, 16, 8)
        path = calibration.noise(folder, images).path
        fields = {"dataset": path, "train": images, "test": tests, "batch_size": batch, "width": NARROW}
        fields |= {} if CUDA else {"pretraining_epochs": 1, "tuning_epochs": 2, "window": 1}
        chosen = profiles.profile("smoke", [f"{k}={v}" for k, v in fields.items()], 3)
        runs = [case.run for case in warm_start(chosen)]
        for way, size, grouped in (("alone", 1, True), ("streams", 3, False), ("grouped", 3, True)):
            for name, stops in (("whole", ()), ("resumed", (1, 3))):
                settings = {"grouped": grouped, "compiled": compiled}
                curves = _curves(
                    Path(folder, way, name), plans.plan(runs, lambda _, n=size: n), stops, settings
                )
                digest = hashlib.sha256(json.dumps(curves).encode()).hexdigest()[:12]
                loss = curves[runs[0].id][-1]["train_loss"][-1]
                found = {"way": way, "compiled": compiled, "name": name, "copy": copy}
                tell(check="bits", digest=digest, loss=loss, **found)


def _curves(folder: Path, plan: Plan, stops: Sequence[int], settings: dict) -> dict[str, list]:
    """Curves of a sweep in this process whose groups are stopped after so many epochs, and gone on with."""
    store = Store(folder)
    for group in plan.groups:
        ids, whole = frozenset(run.id for run in group.runs), group.part((1 << len(group.trajectories)) - 1)
        layout = Layout(len(group.trajectories), **settings)
        wanted, parents = ids & plan.wanted.keys(), ids & plan.parents
        job = Job(whole, ids, wanted, parents, str(folder), DEVICE.type, "auto", layout)
        for epochs in (*stops, math.inf):
            polls = itertools.count()
            stop = lambda polls=polls, epochs=epochs: next(polls) >= epochs  # noqa: E731
            ended = trainer.train_part(job, lambda message: print(message, file=sys.stderr), stop)
            if ended.end not in (End.DONE, End.STOPPED):
                raise RuntimeError(f"a group ended so: {ended}")
    records = {name: store.read(name) for name in plan.wanted}
    if any(record.get("compiled", False) != settings["compiled"] for record in records.values()):
        raise NotAvailable("not compiled: the log says why")
    return {name: record["curves"] for name, record in records.items()}


def graphs(tell: Callable[..., None]) -> None:
    """Whether a dropped population frees its memory, and survives the collection of a dead one."""
    gc.disable()
    with tempfile.TemporaryDirectory() as folder:
        runs = noise_runs(folder, NARROW, 3)
        before, made = allocated(), population(runs, {})
        made.train_epoch()
        held = allocated()
        del made
        dropped = allocated()
        gc.collect()
        tell(check="MiB allocated", before=before, captured=held, dropped=dropped, collected=allocated())
        dead, made = population(runs, {}), population(runs, {})
        dead.train_epoch()
        del dead

        def collect(*_: object) -> None:
            gc.collect()

        made.networks[0].register_forward_pre_hook(collect)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            made.train_epoch()
        captured, said = made.step.graph is not None, [str(warning.message)[:200] for warning in told]
        tell(check="collection inside a capture", captured=captured, warnings=said)


def short_of_memory(tell: Callable[..., None]) -> None:
    """Whether one network trains in a process that ran out of memory with several of them."""
    if not CUDA:
        tell(check="short of memory", failed="not available: no limit of memory on a CPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = noise_runs(folder, NARROW, 6)
        population(runs, {"grouped": False}).train_epoch()
        peak, calls, said = torch.cuda.max_memory_reserved(), None, ""
        for share in (0.8, 0.6, 0.4, 0.2):
            clean()
            total = torch.cuda.get_device_properties(DEVICE).total_memory
            torch.cuda.set_per_process_memory_fraction(share * peak / total)
            try:
                made = None
                made = population(runs, {"grouped": False})
                made.train_epoch()
            except Exception as error:
                calls, said = made and made.step.calls, trainer.line(error)[:120]
                break
        made = None
        clean()
        torch.cuda.set_per_process_memory_fraction(1.0)
        one = population(runs[:1], {})
        one.train_epoch()
        tell(check="short of memory", share=share, calls=calls, error=said, after=one.step.graph is not None)


def test_rates(tell: Callable[..., None]) -> None:
    """Test images a second after a capture, by size of batch."""
    with tempfile.TemporaryDirectory() as folder:
        with np.load(calibration.noise(folder, BATCH).path) as file:
            arrays = dict(file)
        arrays["x_test"] = np.resize(arrays["x_test"], (TESTS, 32, 32, 3))
        arrays["y_test"] = np.resize(arrays["y_test"], TESTS)
        np.savez(f"{folder}/tests.npz", **arrays)
        dataset = datasets.npz_dataset(f"{folder}/tests.npz")
        runs = noise_runs(folder, NARROW, MANY, dataset=dataset)
        for grouped, size in itertools.product((True, False), BATCHES):
            clean()
            populations.TEST_BATCH[DEVICE.type] = size
            made = population(runs, {"grouped": grouped})
            for _ in range(4):
                made.test_accuracy()
            rate = turn(lambda made=made: made.test_accuracy() and len(runs) * TESTS, SECONDS / 2)
            way = "grouped" if grouped else "streams"
            tell(check=f"tests a second, {MANY} {way}, batches of {size}", rate=round(rate))
            del made


def profiled(tell: Callable[..., None], specs: list[dict]) -> None:
    """What three steps spend their time on: shares of kinds of kernels, and the ten longest kernels."""
    activities = [ProfilerActivity.CUDA] if CUDA else [ProfilerActivity.CPU]
    with tempfile.TemporaryDirectory() as folder:
        for spec in specs:
            clean()
            name = f"profile of {spec['name']}"
            try:
                made = population(noise_runs(folder, spec["width"], spec["members"], steps=3), spec)
            except NotAvailable as error:
                tell(check=name, failed=str(error))
                continue
            for _ in range(2):
                made.train_epoch()
            with profile(activities=activities) as recorded:
                start = time.perf_counter()
                made.train_epoch()
                wall = time.perf_counter() - start
            tell(check=name, steps=3, wall_ms=round(1e3 * wall, 2), **_kernels(recorded))
            del made


def _kernels(recorded: profile) -> dict:
    key = "self_device_time_total" if CUDA else "self_cpu_time_total"
    times = {}
    for event in recorded.key_averages():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        marked = getattr(event, "is_user_annotation", False) or event.key.startswith(("##", "Optimizer."))
        if on_gpu == CUDA and not marked and getattr(event, key) > 0:
            times[event.key] = getattr(event, key), event.count
    total = sum(t for t, _ in times.values()) or 1.0
    shares = dict.fromkeys([*CLASSES, "other"], 0.0)
    for kernel, (spent, _) in times.items():
        kinds = (kind for kind, pattern in CLASSES.items() if re.search(pattern, kernel.lower()))
        shares[next(kinds, "other")] += 100 * spent / total
    longest = sorted(times.items(), key=lambda item: -item[1][0])[:10]
    return {
        "kernels_ms": round(total / 1e3, 3),
        "kernels": sum(count for _, count in times.values()),
        "shares": {kind: round(share, 1) for kind, share in shares.items()},
        "longest": [[k[:160], round(t / 1e3, 3), n] for k, (t, n) in longest],
    }


TASKS = {f.__name__: f for f in (machine, table, repeats, graphs, short_of_memory, test_rates, profiled)}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")  # not inherited by processes that compilers start
    os.dup2(2, 1)

    def tell(**finding: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(finding), file=out, flush=True)

    if not CUDA:
        cpu.tiles = None  # as on a GPU; to compile them takes longer than all else
    for name, settings in json.loads(sys.argv[1]).items():
        try:
            TASKS[name](tell, **settings)
        except NotAvailable as error:
            tell(check=f"{name}, compiled" if settings.get("compiled") else name, failed=str(error))
    sys.stderr.flush()
    os._exit(0)  # all is told: taking PyTorch down module by module is time for nothing


if __name__ == "__main__":
    main()
