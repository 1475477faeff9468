"""Folders of images and data sets of PyTorch, each made an `.npz` file once."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sized
from pathlib import Path

from repro.config import InputError
from repro.data.downloads import cache
from repro.data.npz import one_line, pack, write
from repro.lazy import Lazy

np = Lazy("numpy")  # as in `repro.data.datasets`
KINDS = frozenset(
    (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
)  # of torchvision


def of_folder(folder: str | Path, side: int) -> Path:
    """The `.npz` file of a folder that has a folder of images for each class, square, `side` pixels wide.

    Or of one that has two such folders, `train` and `test`. Images are scaled and
    cut around their middle, once for the same files.
    """
    folder = Path(folder)
    try:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS and path.is_file())
        stamps = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in files)
        return _of_files(folder, side, tuple(files), stamps, cache("").parent)
    except OSError as error:  # a file that this user may not read
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}") from error


@functools.lru_cache(maxsize=8)
def _of_files(folder: Path, side: int, files: tuple[Path, ...], stamps: object, kept: Path) -> Path:
    """The `.npz` file, in the folder `kept`, of the images in a folder, cut to side x side pixels.

    It is made where it is not there. Nothing reads `stamps`, the sizes and times of the
    files: with them, a change of a file asks the cache anew.
    """
    digest = hashlib.sha256()
    for path in files:
        digest.update(os.fsencode(f"{path.relative_to(folder)}\n{path.stat().st_size}\n"))
        digest.update(path.read_bytes())
    made = kept / f"folder-{digest.hexdigest()[:16]}-{side}.npz"
    if not made.exists():
        import torchvision  # not above: records must be readable without torch
        from torchvision.transforms import CenterCrop, Compose, Resize

        cut = Compose([Resize(side), CenterCrop(side)])
        splits = [folder / "train", folder / "test"]
        splits = splits if all(split.is_dir() for split in splits) else [folder]
        try:
            sets = [torchvision.datasets.ImageFolder(split, transform=cut) for split in splits]
            if len(sets[0].classes) < 2:
                raise InputError(f"it has one class, {sets[0].classes[0]!r}: two or more folders are needed")
            if any(found.classes != sets[0].classes for found in sets):
                raise InputError("train and test do not have the same classes")
            arrays = [array for found in sets for array in _arrays(found)]
        except Exception as error:  # the library raises many kinds for a picture that is broken
            raise InputError(f"{folder} is no folder of images: {one_line(error)}") from error
        write(arrays, made)
    return made


def of_torch(train: Sized, test: Sized | None = None) -> Path:
    """The `.npz` file of data sets of PyTorch: pairs of an image, all of one square size, and a whole number.

    An image is a tensor [channels, side, side], float or uint8, or what NumPy makes
    [side, side] or [side, side, channels] of.
    """
    arrays = [array for found in (train, test) if found is not None for array in _arrays(found)]
    made = cache(f"own-{pack(arrays, 0).fingerprint}")
    if not made.exists():
        write(arrays, made)
    return made


def _arrays(found: Sized) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a data set of PyTorch."""
    pairs = [found[i] for i in range(len(found))]
    try:
        return np.stack([_pixels(image) for image, _ in pairs]), np.array([int(label) for _, label in pairs])
    except (TypeError, ValueError) as error:
        raise InputError(f"no images of one size with whole numbers as labels: {one_line(error)}") from error


def _pixels(image: object) -> np.ndarray:
    """An image as an array, channels last."""
    channels_first = hasattr(image, "movedim") and image.ndim == 3
    return np.asarray(image.movedim(0, -1) if channels_first else image)
