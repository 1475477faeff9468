"""The named data sets that torchvision downloads, kept as one `.npz` file each.

They lie in the folder that the environment variable `REPRO_DATA` names
(`~/.cache/repro` otherwise), in a canonical order, so that a download and any
other copy of a data set are the same arrays with the same fingerprint.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from repro.config import InputError, given
from repro.data.npz import ARRAYS, Images, one_line, pack, read, write
from repro.lazy import Lazy

np = Lazy("numpy")  # as in `repro.data.datasets`

SIDE = 32  # of an image of any of them, in pixels


@dataclass(frozen=True)
class Source:
    """A named data set as torchvision loads it, and what a faithful copy of it holds."""

    loader: str
    train: int
    test: int
    classes: int
    fingerprint: str | None = None  # of all its images in canonical order, where it is known


SOURCES = {
    "cifar10": Source("CIFAR10", 50_000, 10_000, 10, "758ef4d35d399007"),
    "cifar100": Source("CIFAR100", 50_000, 10_000, 100),
    "svhn": Source("SVHN", 73_257, 26_032, 10),
}


def cache(name: str) -> Path:
    """Where a downloaded or imported data set is kept, whether it is there or not."""
    folder = Path(tempfile.gettempdir(), "repro")  # of a user without a home, as containers have them
    with contextlib.suppress(RuntimeError):
        folder = Path.home() / ".cache" / "repro"
    return given(os.environ.get("REPRO_DATA") or folder) / f"{name}.npz"


def source_of(name: str) -> Source:
    if name not in SOURCES:
        raise InputError(
            f"unknown data set {name!r}: choose from digits, {', '.join(SOURCES)}, an .npz file or a folder"
        )
    return SOURCES[name]


def _kept(name: str) -> Images:
    """The data set in the cache, whoever put it there; raises `InputError` on anything else."""
    try:
        return _checked(name, read(cache(name)), str(cache(name)))
    except InputError as error:
        raise InputError(f"{error}; move it elsewhere, and run `repro data {name}`") from None


def download(name: str) -> Images:
    """All images of a named data set: those in the cache, or fetched by torchvision and kept there."""
    source = source_of(name)
    if cache(name).exists():
        return _kept(name)
    import torchvision  # not above: records must be readable without torch

    loader = getattr(torchvision.datasets, source.loader)
    try:
        cache(name).parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(name).parent) as root:
            if name == "svhn":
                splits = [loader(root, split=split, download=True) for split in ("train", "test")]
                pairs = [(split.data.transpose(0, 2, 3, 1), split.labels) for split in splits]
            else:
                splits = [loader(root, train=train, download=True) for train in (True, False)]
                pairs = [(split.data, split.targets) for split in splits]
    except Exception as error:  # network, disk and archive each have errors of their own
        raise InputError(
            f"downloading {name} failed ({one_line(error)}): run `repro data {name}` "
            f"where there is a network, or `repro data {name} --from FILE.npz` with a copy of it"
        ) from error
    arrays = [array for x, y in pairs for array in (np.asarray(x), np.asarray(y, np.int64))]
    return _keep(name, pack(arrays, source.classes), "the download")


def import_npz(name: str, path: str | Path) -> Images:
    """All images of a named data set, copied from an `.npz` file into the cache if they are that data set."""
    source_of(name)
    path = given(path)
    return _keep(name, read(path), str(path))


def _checked(name: str, found: Images, origin: str) -> Images:
    """The images in canonical order; raises `InputError` where they are not that data set."""
    source = SOURCES[name]
    full = found if found.fingerprint == source.fingerprint else _canonical(found)
    shapes = [array.shape for array in (full.x_train, full.x_test)]
    if (
        full.x_train.dtype != np.uint8
        or shapes != [(n, SIDE, SIDE, 3) for n in (source.train, source.test)]
        or full.classes != source.classes
        or source.fingerprint not in (None, full.fingerprint)
    ):
        raise InputError(
            f"{origin} is not {name}: expected its {source.train} training and {source.test} test images, "
            f"uint8 [n, {SIDE}, {SIDE}, 3], with labels 0 to {source.classes - 1}"
        )
    return full


def _canonical(full: Images) -> Images:
    """The images sorted by label and then by their bytes.

    So every copy of a data set, in whatever order, gives the same arrays and the same fingerprint.
    """
    arrays = []
    for x, y in ((full.x_train, full.y_train), (full.x_test, full.y_test)):
        keys = [(label, image.tobytes()) for label, image in zip(y.tolist(), x, strict=True)]
        order = sorted(range(len(y)), key=keys.__getitem__)
        arrays += [x[order], y[order]]
    return pack(arrays, full.classes)


def _keep(name: str, found: Images, origin: str) -> Images:
    """The images in canonical order, checked, and in the cache; what lies there is never replaced."""
    full, path = _checked(name, found, origin), cache(name)
    if not path.exists():
        write([getattr(full, array) for array in ARRAYS], path)
    elif _kept(name).fingerprint != full.fingerprint:
        raise InputError(f"{path} holds other images than {origin}: move it elsewhere first")
    return full
