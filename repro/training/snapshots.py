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
    curves: list[dict[str, list[float]]]  # `CURVES` of each stage so far, by name
    seconds: float  # of training: its share of the time of its populations
    diverged: int | None = None  # epoch of the last stage whose loss was not finite; or None

    def of(self, run: Run) -> Snapshot:
        """The same for `run` alone, of several trained as one: tests that only others need become NaN."""
        *before, last = self.curves
        n = len(last["train_loss"])
        tests = [
            value if run.tested(epoch) or epoch == n else math.nan
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
    """Write `content` for `load`; an existing file stays until the new one is complete."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    whole = buffer.getbuffer()  # no copy: a checkpoint may be large
    files.replace(path, files.seal(path.stem, whole), whole)


def load(path: Path, device: torch.device | None = None) -> dict:
    """The content saved under this file name; raises `files.Damaged`, or `FileNotFoundError`."""
    content = files.unsealed(path)
    try:
        return dict(torch.load(io.BytesIO(content), weights_only=True, map_location=device))
    except torch.OutOfMemoryError:
        raise
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, EOFError) as error:
        raise files.Damaged(f"{path}: {' '.join(str(error).split())[:200]}") from error
