"""The named data sets that torchvision downloads, kept as one `.npz` file each.

The files lie in the cache, the folder that the environment variable `REPRO_DATA`
names (`~/.cache/repro` otherwise). Their images are in a canonical order, so that
every copy of a data set gives the same arrays with the same fingerprint.
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

SIDE = 32  # height and width of the images of all named data sets, in pixels


@dataclass(frozen=True)
class Source:
    """The name of torchvision's class for a data set, and what a true copy of the data set holds."""

    loader: str
    train: int
    test: int
    classes: int
    fingerprint: str | None = None  # of all its images in canonical order, if known


SOURCES = {
    "cifar10": Source("CIFAR10", 50_000, 10_000, 10, "758ef4d35d399007"),
    "cifar100": Source("CIFAR100", 50_000, 10_000, 100),
    "svhn": Source("SVHN", 73_257, 26_032, 10),
}


def cache(name: str) -> Path:
    """Path of a data set's `.npz` file in the cache, whether it exists or not."""
    folder = Path(tempfile.gettempdir(), "repro")  # for users without a home, as in some containers
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
    """A data set from its file in the cache; raises `InputError` if that is damaged or holds other images."""
    try:
        return _checked(name, read(cache(name)), str(cache(name)))
    except InputError as error:
        raise InputError(f"{error}; move it elsewhere, and run `repro data {name}`") from None


def download(name: str) -> Images:
    """All images of a named data set, from the cache or else downloaded by torchvision and cached.

    Raises `InputError` if the name is unknown, the download fails or the images are not that data set.
    """
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
    """Cache a named data set from an `.npz` file, and return it; raises `InputError` for other images."""
    source_of(name)
    path = given(path)
    return _keep(name, read(path), str(path))


def _checked(name: str, found: Images, origin: str) -> Images:
    """The images in canonical order; `InputError` if shapes, classes or the fingerprint (if known) differ."""
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

    This way every copy of a data set, in whatever order, gives the same arrays and fingerprint.
    """
    arrays = []
    for x, y in ((full.x_train, full.y_train), (full.x_test, full.y_test)):
        keys = [(label, image.tobytes()) for label, image in zip(y.tolist(), x, strict=True)]
        order = sorted(range(len(y)), key=keys.__getitem__)
        arrays += [x[order], y[order]]
    return pack(arrays, full.classes)


def _keep(name: str, found: Images, origin: str) -> Images:
    """Check the images and cache them in canonical order; a file that is in the cache is never replaced."""
    full, path = _checked(name, found, origin), cache(name)
    if not path.exists():
        write([getattr(full, array) for array in ARRAYS], path)
    elif _kept(name).fingerprint != full.fingerprint:
        raise InputError(f"{path} holds other images than {origin}: move it elsewhere first")
    return full
