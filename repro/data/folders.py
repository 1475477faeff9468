"""Folders of images and PyTorch data sets, each converted once to an `.npz` file in the cache."""

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
)  # that torchvision reads


def of_folder(folder: str | Path, side: int) -> Path:
    """Convert a folder of images to an `.npz` file, once for the same content, and return its path.

    It has a folder of images for each class, or folders `train` and `test` that
    have these. Images become RGB, are resized until the shorter edge has `side` pixels,
    and cropped to the square in their middle. Raises `InputError` if this fails.
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
    """Path of the `.npz` file for `of_folder`, in the folder `kept`; makes the file if it does not exist.

    `stamps`, the times and sizes of the files, are only a part of the cache's key, so that
    changed files are read again.
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
        except Exception as error:  # a broken picture raises errors of many types
            raise InputError(f"{folder} is no folder of images: {one_line(error)}") from error
        write(arrays, made)
    return made


def of_torch(train: Sized, test: Sized | None = None) -> Path:
    """Convert PyTorch data sets of (image, integer label) to an `.npz` file and return its path.

    An image is a tensor [channels, side, side] or anything that NumPy converts to
    [side, side] or [side, side, channels], float or uint8, all of the same size.
    """
    arrays = [array for found in (train, test) if found is not None for array in _arrays(found)]
    made = cache(f"own-{pack(arrays, 0).fingerprint}")
    if not made.exists():
        write(arrays, made)
    return made


def _arrays(found: Sized) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a PyTorch data set; `InputError` if sizes differ or labels are no numbers."""
    pairs = [found[i] for i in range(len(found))]
    try:
        return np.stack([_pixels(image) for image, _ in pairs]), np.array([int(label) for _, label in pairs])
    except (TypeError, ValueError) as error:
        raise InputError(f"no images of one size with whole numbers as labels: {one_line(error)}") from error


def _pixels(image: object) -> np.ndarray:
    """An image as an array, channels last; in a tensor of three dimensions they come first."""
    channels_first = hasattr(image, "movedim") and image.ndim == 3
    return np.asarray(image.movedim(0, -1) if channels_first else image)
