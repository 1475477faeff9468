"""The images that a run learns from: the same `Dataset` always gives the same images.

`digits` is made here, offline, in a moment; `cifar10`, `cifar100` and `svhn`
come from `repro.data.downloads`; user-supplied images are read from an `.npz`
file (see `npz_dataset`), which `repro.data.folders` can make from other formats.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import warnings
from pathlib import Path

from repro.config import ALL, Dataset, InputError, Run, Subset, given
from repro.data.downloads import SIDE, SOURCES, cache, download
from repro.data.npz import Images, pack, read
from repro.lazy import Lazy

np = Lazy("numpy")  # imported late: a plan counts images without it

CANVAS, DIGIT = 12, 8  # side of an image of `digits`, and of the digit in it, in pixels
DIGITS = 1000  # images in each split of `digits`, if no number is given
TEST_SHARE = 0.2  # share of user-supplied images that become test images if there are none
TRAIN_BASES = 1198  # two thirds of scikit-learn's 1,797 digits; test images come from the other 599
MOST_DIGITS = 100_000

# Streams of random numbers, independent of each other.
STRATA, PLACE, NOISE, SPLIT = range(4)


def generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=stream)))


def _stratified(y: np.ndarray, sample: int = 0, stream: int = STRATA) -> np.ndarray:
    """All indices of `y`, shuffled so that any first or last n of them hold the classes in proportion."""
    shuffled = generator(0, stream, *_sampled(sample)).permutation(len(y))
    place = np.empty(len(y))
    for label in np.unique(y):
        members = shuffled[y[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")]


def _sampled(sample: int) -> tuple[int, ...]:
    """The part of a random stream's key that stands for the sample; empty for sample 0."""
    return (sample,) if sample else ()


@functools.lru_cache(maxsize=2)
def images(dataset: Dataset) -> Images:
    """The images of a data set; downloads a named data set that is not in the cache yet.

    If `train` or `test` asks for fewer images than there are, a random sample is
    kept, with the classes in proportion (except in `digits` with a `sample` above 0); a
    smaller one is part of a larger one. `sample` numbers samples of the training images.
    With `held_out`, test images are taken out of the training images: `test` of them, or
    a tenth; of user-supplied images at most a third; of `digits` as in `_digit_bases`.
    Raises `InputError` if the data set is unknown, unavailable or smaller than asked for.
    """
    from_file = bool(dataset.fingerprint or dataset.path)
    if dataset.name == "digits" and not from_file:
        splits = [_digits(split, dataset) for split in ("train", "test")]
        return pack([array for split in splits for array in split], classes=10)
    if dataset.noise:
        raise InputError(f"noise is for the built-in digits only, not for {dataset.name}")
    return _sample(_own(dataset) if from_file else download(dataset.name), dataset)


def _sample(full: Images, dataset: Dataset) -> Images:
    if (dataset.train, dataset.test, dataset.held_out) == (None, None, False):
        return full
    y = full.y_train
    order, held = _stratified(y, dataset.sample), _held_out(dataset, len(y))
    train = _part("train", order[: len(y) - held], dataset.train, dataset)
    if dataset.held_out:
        x_test, y_test, test = full.x_train, y, np.sort(order[len(y) - held :])
    else:
        x_test, y_test = full.x_test, full.y_test
        test = _part("test", _stratified(y_test), dataset.test, dataset)
    return pack([full.x_train[train], y[train], x_test[test], y_test[test]], full.classes)


def _held_out(dataset: Dataset, images: int) -> int:
    """How many of `images` training images are held out for tests; at most a third of user-supplied ones."""
    if not dataset.held_out:
        return 0
    wanted = dataset.test or images // 10
    return min(wanted, images // 3) if dataset.fingerprint else wanted


def _part(split: str, order: np.ndarray, n: int | None, dataset: Dataset) -> np.ndarray:
    """The first n indices of `order`, or all if n is None, sorted."""
    return np.sort(order[: _number(split, n, len(order), dataset)])


def _number(split: str, n: int | None, there: int, dataset: Dataset) -> int:
    """How many of `there` images to use: n, or all if it is None or, for user-supplied ones, too large."""
    if n is not None and n > there and not dataset.fingerprint:
        raise InputError(f"{dataset.name} has {there} {split} images: {split} cannot be {n}")
    return there if n is None else min(n, there)


def _digits(split: str, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's digits, uint8 [n, side, side, 1], on a larger canvas with Gaussian noise, and labels.

    Their places are random. Training and test images come from different digits; if a
    split has more images than digits, its digits are repeated at other places.
    """
    n = _number(split, getattr(dataset, split) or DIGITS, MOST_DIGITS, dataset)
    digits, labels = _handwritten()
    bases = _digit_bases(labels, dataset.held_out)[split]
    # A split must not depend on the size of the other, nor the test images on `dataset.sample`.
    stream = ("train", "test").index(split), *(_sampled(dataset.sample) if split == "train" else ())
    if stream[1:]:
        bases = generator(0, STRATA, *stream).permutation(bases)
    chosen = np.resize(bases, n)
    corner = generator(0, PLACE, *stream).integers(0, CANVAS - DIGIT, size=(n, 2), endpoint=True)
    rows, columns = (corner[:, axis, None] + np.arange(DIGIT) for axis in (0, 1))
    x = np.zeros((n, CANVAS, CANVAS))
    x[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]] = digits[chosen] / 16
    x += dataset.noise * generator(0, NOISE, *stream).standard_normal(x.shape)
    # Bytes stand for -0.5 to 1.5: rounding hides last-bit differences between mathematics libraries.
    x = np.rint(255 * (x + 0.5) / 2).clip(0, 255).astype(np.uint8)
    return x[..., None], labels[chosen]


@functools.cache
def _handwritten() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's digits, pixels from 0 to 16, float64 [n, side, side], and their labels, int64 [n].

    Read from the library's file, because importing the library takes a second.
    """
    [library] = importlib.util.find_spec("sklearn").submodule_search_locations
    table = np.loadtxt(Path(library, "datasets", "data", "digits.csv.gz"), delimiter=",")
    return table[:, :-1].reshape(-1, DIGIT, DIGIT), table[:, -1].astype(np.int64)


def _digit_bases(y: np.ndarray, held_out: bool) -> dict[str, np.ndarray]:
    """Indices of scikit-learn's digits for each split; with `held_out`, both come from the training ones."""
    order, first = _stratified(y), TRAIN_BASES
    if held_out:
        order, first = order[:TRAIN_BASES], 2 * TRAIN_BASES // 3
    return {"train": order[:first], "test": order[first:]}


def npz_dataset(
    path: str | Path, train: int | None = None, test: int | None = None, split: int = 0
) -> Dataset:
    """The data set in an `.npz` file, identified by its pixels, so that the file may be moved.

    The file holds x_train, y_train, x_test and y_test: square images, uint8 or
    float, [n, side, side] or [n, side, side, channels], and integer labels. Without
    the latter two, a fifth of the images of each class, drawn with the seed `split`,
    become test images. `train` and `test` limit the numbers of images used. The file's
    stem is the name of the data set. Raises `InputError` if the file cannot be used.
    """
    path = given(path)
    full = read(path)
    if full.labels:
        some = ", ".join(map(str, full.labels[:3])) + ", ..." * (len(full.labels) > 3)
        warnings.warn(f"{path}: labels {some} count as classes 0 to {full.classes - 1}", stacklevel=2)
    seed = None if len(full.y_test) else split
    whole = _split(full, seed)
    if len(lost := np.setdiff1d(full.y_train, whole.y_train)):
        raise InputError(
            f"class {lost[0]} has too few images: with a fifth set apart for tests, none is left to train on"
        )
    asked = (train, len(whole.y_train)), (test, len(whole.y_test))
    train, test = (None if n is not None and n > there else n for n, there in asked)
    return Dataset(path.stem, train, test, fingerprint=full.fingerprint, path=str(path), split=seed)


def _split(full: Images, seed: int | None) -> Images:
    """Split off a fifth of each class for tests, if `seed` is given; otherwise return all unchanged."""
    if seed is None:
        return full
    order, test = _stratified(full.y_train, seed, SPLIT), max(2, round(TEST_SHARE * len(full.y_train)))
    parts = [np.sort(order[test:]), np.sort(order[:test])]
    return pack([array[part] for part in parts for array in (full.x_train, full.y_train)], full.classes)


def _own(dataset: Dataset) -> Images:
    if not (dataset.path and dataset.fingerprint):
        raise InputError(f"data set {dataset.name} is an .npz file: name the file, as npz_dataset does")
    full = read(Path(dataset.path))
    if full.fingerprint != dataset.fingerprint:
        raise InputError(
            f"{dataset.path} has changed: its images have fingerprint {full.fingerprint}, "
            f"the data set {dataset.name} has {dataset.fingerprint}"
        )
    return _split(full, dataset.split)


def describe() -> list[dict[str, object]]:
    """One row per named data set: name, state, number of images, fingerprint and file.

    The state is `built in`, `not here`, or after a check of the file in the cache `here` or `unusable`.
    """
    columns = ("name", "state", "train", "test", "fingerprint", "path")
    rows = [("digits", "built in", DIGITS, DIGITS, images(Dataset("digits")).fingerprint, None)]
    for name, source in SOURCES.items():
        state, fingerprint = "not here", source.fingerprint
        if cache(name).exists():
            try:
                state, fingerprint = "here", download(name).fingerprint
            except InputError:
                state = "unusable"
        rows.append((name, state, source.train, source.test, fingerprint, str(cache(name))))
    return [dict(zip(columns, row, strict=True)) for row in rows]


def counts(dataset: Dataset) -> tuple[int, int, int]:
    """Numbers of training images, test images and classes; no named data set is downloaded for them."""
    if dataset.fingerprint is None and dataset.name == "digits":
        asked = (("train", dataset.train), ("test", dataset.test))
        return *(_number(split, n or DIGITS, MOST_DIGITS, dataset) for split, n in asked), 10
    if dataset.fingerprint is None and dataset.name in SOURCES:
        source = SOURCES[dataset.name]
        held = _held_out(dataset, source.train)
        train = _number("train", dataset.train, source.train - held, dataset)
        return train, held or _number("test", dataset.test, source.test, dataset), source.classes
    full = images(dataset)
    return len(full.y_train), len(full.y_test), full.classes


def shape(dataset: Dataset) -> tuple[int, int, int]:
    """Side of an image in pixels, numbers of channels and classes; no named data set is downloaded for it."""
    if dataset.fingerprint is None and dataset.name == "digits":
        return CANVAS, 1, 10
    if dataset.fingerprint is None and dataset.name in SOURCES:
        return SIDE, 3, SOURCES[dataset.name].classes
    full = images(dataclasses.replace(dataset, sample=0))  # all samples have the same shape
    return *full.x_train.shape[2:], full.classes


def expected_size(images: int, classes: int, subset: Subset) -> int:
    """Number of images in a subset of `images` training images, if all classes had the same size.

    It fixes the steps of an epoch, which are then the same for every seed, and known without the data.
    """
    uniform = round(subset.ratio * images)
    dealt, seen = (
        sum(n // subset.parts + (i < n % subset.parts) for i in range(subset.part))
        for n in (uniform, classes)
    )
    return dealt + (images - uniform) * seen // classes


def steps_per_epoch(run: Run) -> int:
    """Full batches per epoch of the run's last stage: of its subset or, with `gamma`, of all training images.

    Raises `InputError` if there are fewer images than a batch has.
    """
    stage = run.stages[-1]
    images, _, classes = counts(run.dataset)
    n = expected_size(images, classes, stage.data if stage.data.gamma is None else ALL)
    if n < run.batch_size:
        raise InputError(f"batch_size {run.batch_size} is more than the {n} images of a stage")
    return n // run.batch_size
