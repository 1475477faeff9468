"""Folders of images and PyTorch data sets, each converted once to an `.npz` file in the cache."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Iterator, Sized
from glob import glob
from pathlib import Path

from repro.config import InputError
from repro.data.downloads import cache
from repro.data.npz import ARRAYS, SMALLEST_SIDE, as_images, one_line, pack, write
from repro.lazy import Lazy

np = Lazy("numpy")  # as in `repro.data.datasets`
KINDS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # of image files
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}  # not names of classes


def place(data: object) -> str:
    """The name of a data set, or the path of its file or folder; PyTorch data are written to a file."""
    if isinstance(data, str | Path):
        return str(data)
    pair = isinstance(data, tuple | list) and len(data) == 2
    return str(of_torch(*data) if pair else of_torch(data))


def of_folder(folder: str | Path, side: int) -> Path:
    """Convert a folder of images to an `.npz` file, once for the same content, and return its path.

    It has a folder of images for each class, or folders `train` and `test` that have
    these; names that begin with a dot are left out. Images, of 8 bits a channel, become
    RGB, are resized until the shorter edge has `side` pixels, and cropped to the square
    in their middle. Raises `InputError` if this fails.
    """
    folder = Path(folder)
    if side < SMALLEST_SIDE:
        raise InputError(f"size must be at least {SMALLEST_SIDE}, not {side}")
    try:
        splits = _splits(folder)
        found = [path.stat() for path, _ in itertools.chain(*splits)]
        stamps = tuple((file.st_mtime_ns, file.st_size) for file in found)
        return _of_files(folder, side, splits, stamps, cache("").parent)
    except OSError as error:  # a file that this user may not read
        raise InputError(f"{error.filename or folder} cannot be read: {error.strerror}") from error


def _splits(folder: Path) -> tuple[tuple[tuple[Path, int], ...], ...]:
    """Path and label of each training image and, if there are any, of each test image."""
    inside, wrong = _folders(folder), f"{folder} is no folder of images: it has"
    splits = [folder / "train", folder / "test"] if {"train", "test"} <= set(inside) else [folder]
    classes = [_folders(split) for split in splits]
    if inside and splits == [folder] and SPLITS.issuperset(map(str.lower, inside)):
        raise InputError(f"{wrong} {', '.join(inside)}; there must be train and test, or classes")
    if len(classes[0]) < 2:
        named = f"one class, {classes[0][0]!r}" if classes[0] else "no class"
        raise InputError(f"{wrong} {named}: two or more folders are needed")
    if classes[0] != classes[-1]:
        raise InputError(f"{wrong} not the same classes in train and test")
    return tuple(tuple(_labelled(split, classes[0])) for split in splits)


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _labelled(split: Path, classes: list[str]) -> Iterator[tuple[Path, int]]:
    """Path and label of each image in the folders of the classes; `InputError` if one holds none."""
    for label, name in enumerate(classes):
        # Unlike `Path.glob`, this follows links to folders and leaves out hidden names.
        files = glob("**/*", root_dir=split / name, recursive=True)  # noqa: PTH207
        images = [file for file in files if file.lower().endswith(KINDS)]
        if not images:
            raise InputError(f"{split / name} has no images ({', '.join(KINDS)})")
        yield from ((split / name / file, label) for file in sorted(images, key=os.path.split))


@functools.lru_cache(maxsize=8)
def _of_files(folder: Path, side: int, splits: tuple, stamps: object, kept: Path) -> Path:
    """Path of the `.npz` file for `of_folder`, in the folder `kept`; makes the file if it does not exist.

    `splits` come from `_splits`. `stamps`, the times and sizes of the files, are only a
    part of the cache's key, so that changed files are read again.
    """
    digest = hashlib.sha256()
    for path, _ in itertools.chain(*splits):
        digest.update(os.fsencode(f"{path.relative_to(folder)}\n{path.stat().st_size}\n"))
        digest.update(path.read_bytes())
    made = kept / f"images-{digest.hexdigest()[:16]}-{side}.npz"
    if not made.exists():
        read = ([(_read(path, side), label) for path, label in split] for split in splits)
        write([array for split in read for array in _arrays(split)], made)
    return made


def _read(path: Path, side: int) -> np.ndarray:
    """The square in the middle of an image, uint8 [side, side, 3]; `InputError` if it cannot be read."""
    from PIL import Image
    from torchvision.transforms.functional import center_crop, resize  # records are readable without torch

    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":  # 16 or 32 bits: the conversion would make most pixels white
                raise InputError(f"its mode is {image.mode}, not 8 bits a channel")
            return np.asarray(center_crop(resize(image.convert("RGB"), side), side))
    except Exception as error:  # a broken image raises errors of many types
        raise InputError(f"{path} is no image to use: {one_line(error)}") from error


def of_torch(*splits: Sized) -> Path:
    """Convert one or two PyTorch data sets, training and test, to an `.npz` file and return its path.

    They give a pair (image, integer label) for each index. An image is a tensor
    [channels, side, side] or anything that NumPy converts to [side, side] or
    [side, side, channels], float or uint8, all of the same size. Raises `InputError` on others.
    """
    arrays = [array for found in splits for array in _arrays(found)]
    as_images(dict(zip(ARRAYS, arrays, strict=False)), "PyTorch data")
    made = cache(f"own-{pack(arrays, 0).fingerprint}")
    if not made.exists():
        write(arrays, made)
    return made


def _arrays(found: Sized) -> list[np.ndarray]:
    """All images and all labels of a PyTorch data set; `InputError` if it is none, or if sizes differ."""
    try:
        columns = zip(*(found[i] for i in range(len(found))), strict=True)
        images, labels = ([_array(value) for value in column] for column in columns)
        return [np.stack(images), np.stack(labels)]
    except Exception as error:  # data may raise errors of any type
        raise InputError(
            f"data of type {type(found).__name__} hold no images of one size with whole numbers as labels, "
            f"a pair at each index: {one_line(error)}"
        ) from error


def _array(value: object) -> np.ndarray:
    """A value as an array; a tensor of three dimensions has channels first, its array has them last."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.movedim(0, -1) if value.ndim == 3 else value
    return np.asarray(value)
