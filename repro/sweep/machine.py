"""The cores, memory and GPUs of this machine that this process may use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from repro.config import InputError, check_engine

# Environment variables that make OpenMP bind threads to cores, in every process to the same cores.
BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):  # only Linux has it
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


_AT_START = _affinity()


def allowed() -> set[int]:
    """Numbers of the cores on which this process may run, whatever OpenMP bound its first thread to."""
    return _AT_START if os.environ.keys() & set(BINDING) else _affinity()


def cores(root: Path = Path("/")) -> int:
    """Number of cores that this process may use: the least of its affinity, control groups and SLURM."""
    found = [len(allowed())]
    if (granted := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():  # not every SLURM enforces it
        found.append(int(granted))
    for group in _control_groups("cpu", root):
        version1 = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        for numbers in (_numbers(group / "cpu.max"), version1):
            if len(numbers) == 2 and min(numbers) > 0:
                found.append(numbers[0] // numbers[1])
    return max(1, min(found))


def memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use: all of the machine's, or what its control groups allow."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _control_groups("memory", root):
        found += _numbers(group / "memory.max") + _numbers(group / "memory.limit_in_bytes")
    return min(found)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups (version 1 or 2) that this process is in, from the top down.

    Some may not exist: a container may see its own group as the top one, whatever the kernel calls it.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        names = (controllers, controller) if controllers else ("", "unified")  # version 1, or 2
        parts = PurePosixPath(path).parts[1:]
        for top in (root / "sys/fs/cgroup" / name for name in dict.fromkeys(names)):
            yield from (top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _numbers(file: Path) -> list[int]:
    """The whole numbers in a file of limits; empty if it cannot be read or sets no limit (`max`)."""
    try:
        return [int(word) for word in file.read_text(encoding="utf-8").split()]
    except (OSError, ValueError):
        return []


def gpus(device: str) -> int:
    """Number of GPUs to use, 0 for `cpu`; raises `InputError` if `cuda` is asked for and there is none.

    PyTorch, which takes seconds and half a gigabyte, is imported only if a driver is
    installed or `cuda` is asked for; otherwise only the processes that train import it.
    """
    check_engine(device, "auto")
    if device == "cpu":
        return 0
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        if device == "auto":
            return 0
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not found:
        raise InputError("no CUDA device here: choose auto or cpu")
    return found


def visible_gpu(place: int) -> str:
    """The name (a number or a UUID) of the GPU at this place among those that this process may use."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return names[place] if names != [""] else str(place)
