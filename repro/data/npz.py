"""Images as arrays with a fingerprint, written to `.npz` files and read from them with checks."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from repro.config import InputError
from repro.lazy import Lazy

np = Lazy("numpy")  # as in `repro.data.datasets`

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
ZIPS = (b"PK\x03\x04", b"PK\x05\x06")  # first bytes of an .npz file, and of one that holds nothing
SMALLEST_SIDE = 4
FLAT = 1e-6  # a channel that varies by less than this fraction of its mean counts as constant


@dataclass(frozen=True, eq=False)
class Images:
    """Training and test images, uint8 or float32 [n, side, side, channels], with int64 labels [n].

    The arrays are shared between callers and therefore read-only; `torch.tensor` copies them.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    fingerprint: str  # sixteen hexadecimal digits: hash of the four arrays
    labels: tuple[int, ...] = ()  # of the classes in their file, if these are not 0, 1, 2 and so on

    @functools.cached_property
    def normalization(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training pixels, float32 [channels], in the units of the pixels.

        The deviation of a constant channel is given as 1, so that dividing by it is safe.
        """
        pixels = self.x_train[..., 0].size
        # Sums of bytes are exact in float64, hence the same on every machine; `einsum` makes no float64 copy.
        mean = np.einsum("nhwc->c", self.x_train, dtype=np.float64) / pixels
        square = np.einsum("nhwc,nhwc->c", self.x_train, self.x_train, dtype=np.float64) / pixels
        std = np.sqrt(np.maximum(square - mean**2, 0))
        std = np.where(std > FLAT * np.abs(mean), std, 1)
        return mean.astype(np.float32), std.astype(np.float32)


def pack(arrays: list[np.ndarray], classes: int, labels: tuple[int, ...] = ()) -> Images:
    """`Images` of the four `ARRAYS`, which become read-only, or of the first two, without test images."""
    digest = hashlib.sha256()
    arrays = [np.ascontiguousarray(array) for array in arrays]
    for array in arrays:
        array.setflags(write=False)
        digest.update(f"{array.dtype.name}{array.shape}".encode())
        digest.update(array)
    arrays += [array[:0] for array in arrays[:2]] if len(arrays) == 2 else []
    return Images(*arrays, classes, digest.hexdigest()[:16], labels)


def read(path: Path) -> Images:
    """All images of an `.npz` file that holds `ARRAYS` (the names are those of Keras), or the first two.

    Labels, in ascending order, become classes 0, 1, 2 and so on. The last file read stays in memory until
    it changes, as each seed may draw its own images from it. Raises `InputError` if the file is unusable.
    """
    return _read(path, stamp(path))


def stamp(path: Path) -> tuple[int, int] | None:
    """Time of a file's last change (ns) and its size (bytes); None on an error, which reading will report."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns, path.stat().st_size
    return None


@functools.lru_cache(maxsize=1)
def _read(path: Path, written: tuple[int, int] | None) -> Images:
    try:
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        with path.open("rb") as stream:
            head = stream.read(40)
            stream.seek(0)
            if head[:4] not in ZIPS:  # numpy would take it for a pickle, and advise to allow that
                raise ValueError(f"it begins with {head!r}")
            with np.load(stream, allow_pickle=False) as file:
                arrays = {name: np.asarray(file[name]) for name in ARRAYS if name in file}
    except InputError:
        raise
    except Exception as error:  # a damaged file raises errors of some ten types
        reason = "an array of Python objects" if "pickle" in str(error) else one_line(error)
        raise InputError(f"{path} cannot be read as an .npz file of plain arrays: {reason}") from error
    return as_images(arrays, path)


def as_images(arrays: dict[str, np.ndarray], origin: object) -> Images:
    """`Images` of the arrays that `read` takes; raises `InputError`, which names their origin, on others."""
    try:
        wanted = ARRAYS if {"x_test", "y_test"} & arrays.keys() else ARRAYS[:2]
        if missing := [name for name in wanted if name not in arrays]:
            raise InputError(f"no {', '.join(missing)}; the file must hold {', '.join(wanted)}")
        splits = [_checked(name[2:], arrays[name], arrays[f"y{name[1:]}"]) for name in wanted[::2]]
        kinds = [f"{x.dtype} {list(x.shape[1:])}" for x, _ in splits]
        if kinds[0] != kinds[-1]:
            raise InputError(f"x_train holds images {kinds[0]} and x_test {kinds[1]}; they must be alike")
        labels = np.unique(splits[0][1])
        if len(labels) < 2:
            raise InputError(f"y_train has {labels[0]} only; there must be 2 or more classes")
        if len(unknown := np.setdiff1d(splits[-1][1], labels)):
            raise InputError(f"y_test has {unknown[0]}, a class that y_train lacks")
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    counted = [array for x, y in splits for array in (x, np.searchsorted(labels, y).astype(np.int64))]
    plain = np.array_equal(labels, np.arange(len(labels)))
    return pack(counted, len(labels), () if plain else tuple(labels.tolist()))


def _checked(split: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, side, side, channels], uint8 or float32, and labels [n]; raises `InputError` on others."""
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise InputError(f"x_{split} is {x.dtype}; pixels must be uint8 or float")
    shape = f"{list(x.shape)}"
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[1] < SMALLEST_SIDE or not 1 <= x.shape[3] <= 4:
        raise InputError(
            f"x_{split} has shape {shape}; images must be [n, side, side] or [n, side, side, channels], "
            f"side {SMALLEST_SIDE} or more, channels 1 to 4"
        )
    if y.dtype.kind not in "iu" or y.shape not in ((y.size,), (y.size, 1)):
        raise InputError(f"y_{split} is {y.dtype} {list(y.shape)}; labels must be integers [n] or [n, 1]")
    if len(x) != len(y) or len(x) < 2:
        raise InputError(
            f"{len(x)} images in x_{split}, {len(y)} labels in y_{split}; need as many, 2 or more"
        )
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise InputError(f"x_{split} has NaN, infinite or too large pixels; all must be finite float32")
    return x, y.reshape(-1)


def write(arrays: Iterable[np.ndarray], path: Path) -> None:
    """Write the four `ARRAYS`, or the first two, to a file that gets its name only when it is complete."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            whole = Path(scratch, path.name)
            np.savez(whole, **dict(zip(ARRAYS, arrays, strict=False)))
            whole.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {one_line(error)}; REPRO_DATA names another folder"
        ) from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
