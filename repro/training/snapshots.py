"""Networks as they were at the end of a stage, on disk."""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from repro.config import Run
from repro.store import files


@dataclass
class Snapshot:
    """A network at the end of a stage, and how it got there."""

    state: dict[str, Tensor]  # float tensors on the CPU, as `ResNet.member` names them
    curves: list[dict[str, list[float]]]  # one dictionary of `CURVES` per stage so far
    seconds: float  # of training, this network's share of its populations
    diverged: int | None = None  # epoch of the last stage at which the loss was no longer finite

    def of(self, run: Run) -> Snapshot:
        """The same for one run of several that were trained as one: its last curve has its own tests only."""
        *before, last = self.curves
        n = len(last["train_loss"])
        tests = [
            value if epoch in run.tested or epoch == n else math.nan
            for epoch, value in enumerate(last["test_accuracy"], start=1)
        ]
        return dataclasses.replace(self, curves=[*before, last | {"test_accuracy": tests}])

    def save(self, path: Path) -> None:
        save(vars(self), path)

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        content = load(path)
        if content.keys() != cls.__dataclass_fields__.keys():
            raise files.Damaged(f"{path}: not a network of this version")
        return cls(**content)


def save(content: object, path: Path) -> None:
    """Write `content` for `load`; the file that was there stays until the new one is whole."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    whole = buffer.getbuffer()  # no copy: a checkpoint may be large
    files.replace(path, files.seal(path.stem, whole), whole)


def load(path: Path, device: torch.device | None = None) -> dict:
    """What was saved under this very name; raises `files.Damaged`, or `FileNotFoundError`."""
    content = files.unsealed(path)
    try:
        return dict(torch.load(io.BytesIO(content), weights_only=True, map_location=device))
    except torch.OutOfMemoryError:
        raise
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, EOFError) as error:
        raise files.Damaged(f"{path}: {' '.join(str(error).split())[:200]}") from error
