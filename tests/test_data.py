import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

import repro
from repro import cli, profiles
from repro.config import Dataset, InputError
from repro.data import datasets, downloads, folders, npz

MOSAICS = Path(__file__).resolve().parents[2] / "shared" / "data"
BLANK = 64  # the byte of an empty pixel of `digits`: 255 * 0.5 / 2, rounded


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache folder of the test's own."""
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "cache"))
    datasets.images.cache_clear()
    yield tmp_path / "cache"
    datasets.images.cache_clear()


def arrays(n=12, classes=3, side=8, seed=0, **changes):
    rng = np.random.default_rng(seed)
    made = {}
    for split, count in (("train", n), ("test", n // 2)):
        made[f"x_{split}"] = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        made[f"y_{split}"] = np.arange(count) % classes
    return {name: array for name, array in (made | changes).items() if array is not None}


def saved(path, **made):
    np.savez(path, **made)
    return path


def same(a, b):
    return a.fingerprint == b.fingerprint and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in npz.ARRAYS
    )


def test_module_leaves_torch_alone():
    code = "import sys, repro.data.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# Digits


def test_digits_are_the_same_everywhere():
    assert datasets.images(Dataset("digits")).fingerprint == "97a8e0790fa91ebb"
    assert datasets.images(Dataset("digits", noise=0.3)).fingerprint == "ffa614243ac38c5a"


def test_digits_shapes_and_balance():
    made = datasets.images(Dataset("digits", noise=0.3))
    assert made.x_train.shape == made.x_test.shape == (1000, 12, 12, 1)
    assert made.x_train.dtype == np.uint8
    assert made.y_train.dtype == np.int64
    assert made.classes == 10
    for y in (made.y_train, made.y_test):
        assert np.bincount(y, minlength=10).min() >= 90
        assert np.bincount(y).max() <= 110


def test_digits_lie_whole_inside_the_canvas_and_splits_share_none():
    digits = load_digits()
    levels = np.rint(255 * (digits.images / 16 + 0.5) / 2).astype(np.uint8)
    origin = {}  # bytes of a noiseless image -> the digits it may show
    for row in range(5):
        for column in range(5):
            canvas = np.full((len(levels), 12, 12), BLANK, np.uint8)
            canvas[:, row : row + 8, column : column + 8] = levels
            for base, image in enumerate(canvas):
                origin.setdefault(image.tobytes(), set()).add(base)
    made = datasets.images(Dataset("digits", train=1500, test=1500))
    shown = {}
    for split, x, y in (("train", made.x_train, made.y_train), ("test", made.x_test, made.y_test)):
        assert all(image.tobytes() in origin for image in x)
        assert all(label in digits.target[list(origin[i.tobytes()])] for i, label in zip(x, y, strict=True))
        shown[split] = set().union(*(origin[image.tobytes()] for image in x))
    assert not shown["train"] & shown["test"]
    assert len(shown["train"]) == datasets.TRAIN_BASES  # 1,500 images need every digit, and some twice


def test_digits_bases_are_a_partition():
    bases = datasets._digit_bases(load_digits().target, held_out=False)
    assert len(bases["train"]) == 1198
    assert sorted(np.concatenate(list(bases.values()))) == list(range(1797))


def test_digits_splits_do_not_depend_on_each_others_size():
    one = datasets.images(Dataset("digits", train=300, test=20, noise=0.2))
    other = datasets.images(Dataset("digits", train=300, test=200, noise=0.2))
    assert np.array_equal(one.x_train, other.x_train)
    assert np.array_equal(one.x_test, other.x_test[:20])
    more = datasets.images(Dataset("digits", train=2000, test=20, noise=0.2))
    assert np.array_equal(more.x_train[:300], one.x_train)


def test_digits_noise_has_the_deviation_asked_for():
    clean = datasets.images(Dataset("digits")).x_train.astype(float)
    noisy = datasets.images(Dataset("digits", noise=0.1)).x_train.astype(float)
    empty = clean == BLANK
    assert (noisy - clean)[empty].std() * 2 / 255 == pytest.approx(0.1, rel=0.02)


def test_digits_has_a_limit():
    with pytest.raises(InputError, match="digits has 100000 train images: train cannot be 100001"):
        datasets.images(Dataset("digits", train=100_001))


def test_images_are_shared_and_read_only():
    made = datasets.images(Dataset("digits"))
    assert datasets.images(Dataset("digits")) is made
    with pytest.raises(ValueError, match="read-only"):
        made.x_train[0] = 0


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match="unknown data set 'mnist': choose from digits, cifar10"):
        datasets.images(Dataset("mnist"))


def test_noise_is_for_digits_only(tmp_path):
    with pytest.raises(InputError, match="noise"):
        datasets.images(Dataset("cifar10", noise=0.1))
    own = datasets.npz_dataset(saved(tmp_path / "digits.npz", **arrays()))
    with pytest.raises(InputError, match="noise"):
        datasets.images(dataclasses.replace(own, noise=0.1))


# Normalization


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_normalization_is_that_of_the_training_pixels(tmp_path, kind):
    made = {name: a.astype(kind) if name[0] == "x" else a for name, a in arrays().items()}
    mean, std = datasets.images(datasets.npz_dataset(saved(tmp_path / "own.npz", **made))).normalization
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, made["x_train"].mean((0, 1, 2), dtype=float), rtol=1e-6)
    np.testing.assert_allclose(std, made["x_train"].std((0, 1, 2), dtype=float), rtol=1e-6)


@pytest.mark.parametrize("value", [0, 7, 0.1, 1000.3])
def test_constant_channel_has_deviation_one(tmp_path, value):
    made = {name: a.astype(np.float32) if name[0] == "x" else a for name, a in arrays().items()}
    made["x_train"][..., 1] = value
    mean, std = datasets.images(datasets.npz_dataset(saved(tmp_path / "own.npz", **made))).normalization
    assert mean[1] == np.float32(value)
    assert std[1] == 1
    assert std[0] > 1


# Any .npz file


def test_own_file_is_loaded_as_it_is(tmp_path):
    made = arrays(y_train=(np.arange(12) % 3).reshape(-1, 1).astype(np.uint8))
    dataset = datasets.npz_dataset(saved(tmp_path / "own.npz", **made))
    assert (dataset.name, dataset.path) == ("own", str(tmp_path / "own.npz"))
    loaded = datasets.images(dataset)
    assert loaded.fingerprint == dataset.fingerprint
    assert np.array_equal(loaded.x_train, made["x_train"])
    assert np.array_equal(loaded.y_train, np.arange(12) % 3)
    assert loaded.y_train.dtype == np.int64
    assert loaded.classes == 3


def test_own_file_may_lack_the_channel_axis_and_hold_any_float(tmp_path):
    made = arrays(x_train=np.random.default_rng(0).random((12, 5, 5)), x_test=np.zeros((6, 5, 5), np.float16))
    loaded = datasets.images(datasets.npz_dataset(saved(tmp_path / "own.npz", **made)))
    assert loaded.x_train.shape == (12, 5, 5, 1)
    assert loaded.x_train.dtype == loaded.x_test.dtype == np.float32


def test_fingerprint_is_of_the_pixels_not_of_the_file(tmp_path):
    one = datasets.npz_dataset(saved(tmp_path / "one.npz", **arrays()))
    np.savez_compressed(tmp_path / "two.npz", **dict(reversed(arrays().items())), extra=np.arange(3))
    assert datasets.npz_dataset(tmp_path / "two.npz").fingerprint == one.fingerprint
    assert datasets.npz_dataset(saved(tmp_path / "one.npz", **arrays(seed=1))).fingerprint != one.fingerprint


def test_own_file_that_changed_went_or_has_no_path_is_refused(tmp_path):
    path = saved(tmp_path / "own.npz", **arrays())
    dataset = datasets.npz_dataset(path)
    with pytest.raises(InputError, match="name the file"):
        datasets.images(dataclasses.replace(dataset, path=None))
    saved(path, **arrays(seed=1))
    with pytest.raises(InputError, match=r"own.npz has changed"):
        datasets.images(dataset)
    path.unlink()
    with pytest.raises(InputError, match=r"there is no file .*own.npz"):
        datasets.images(dataset)


def test_sample_of_own_file_is_stratified_nested_and_fixed(tmp_path):
    path = saved(tmp_path / "own.npz", **arrays(n=60))
    small, large = (datasets.images(datasets.npz_dataset(path, train=n, test=9)) for n in (15, 31))
    assert np.bincount(small.y_train).tolist() == [5, 5, 5]
    assert np.bincount(small.y_test).tolist() == [3, 3, 3]
    assert set(np.bincount(large.y_train)) == {10, 11}
    kept = {image.tobytes() for image in large.x_train}
    assert all(image.tobytes() in kept for image in small.x_train)
    assert small.fingerprint != large.fingerprint
    datasets.images.cache_clear()
    assert same(datasets.images(datasets.npz_dataset(path, train=15, test=9)), small)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_every_beginning_of_the_stratified_order_is_in_proportion(labels, draw):
    y = np.array(labels)
    order = datasets._stratified(y)
    assert sorted(order) == list(range(len(y)))
    n = draw.draw(st.integers(0, len(y)))
    share = np.bincount(y) / len(y)
    assert np.abs(np.bincount(y[order[:n]], minlength=len(share)) - n * share).max() <= len(share)


def test_of_ones_own_images_as_many_count_as_there_are_at_most(tmp_path):
    path = saved(tmp_path / "own.npz", **arrays())
    whole = datasets.npz_dataset(path)
    assert datasets.npz_dataset(path, train=13, test=7) == whole
    assert datasets.npz_dataset(path, train=12, test=6) == dataclasses.replace(whole, train=12, test=6)
    held = dataclasses.replace(whole, train=12, test=6, held_out=True)
    assert datasets.counts(held)[:2] == (8, 4)


@pytest.mark.parametrize("labels", [range(1, 4), (-1, 1, 7), (10**12, 2 * 10**12, 5 * 10**12)])
def test_labels_that_do_not_count_from_0_are_renumbered_with_a_line(tmp_path, labels):
    made = arrays()
    names = {f"y_{split}": np.array(labels)[made[f"y_{split}"]] for split in ("train", "test")}
    path = saved(tmp_path / "other.npz", **made | names)
    with pytest.warns(UserWarning, match=f"labels {labels[0]}, .* count as classes 0 to 2"):
        dataset = datasets.npz_dataset(path)
    assert same(datasets.images(dataset), npz.read(saved(tmp_path / "plain.npz", **made)))


def test_images_without_test_images_are_split_by_a_seed_that_is_in_the_id(tmp_path):
    made = arrays(n=60)
    path = saved(tmp_path / "own.npz", **arrays(n=60, x_test=None, y_test=None))
    first, other = (datasets.npz_dataset(path, split=seed) for seed in (0, 1))
    assert (first.split, other.split, first.fingerprint) == (0, 1, other.fingerprint)
    found = datasets.images(first)
    assert (len(found.y_train), len(found.y_test)) == datasets.counts(first)[:2] == (48, 12)
    assert np.bincount(found.y_test).tolist() == (np.bincount(made["y_train"]) / 5).tolist()
    pixels = [{image.tobytes() for image in x} for x in (found.x_train, found.x_test, made["x_train"])]
    assert pixels[0] | pixels[1] == pixels[2] and not pixels[0] & pixels[1]
    assert not same(found, datasets.images(other))
    assert datasets.npz_dataset(saved(tmp_path / "b.npz", **made)).split is None


def floats(value):
    x = np.zeros((12, 8, 8, 3))
    x[3, 2, 1, 0] = value
    return x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "no y_test; the file must hold x_train, y_train, x_test, y_test"),
        (dict.fromkeys(npz.ARRAYS), "no x_train, y_train; the file must hold x_train, y_train$"),
        ({"x_train": np.zeros((12, 8, 8, 3), np.int64)}, "x_train is int64; pixels must be uint8 or float"),
        ({"x_train": np.zeros((12, 8, 8, 3), bool)}, "x_train is bool"),
        ({"x_train": np.zeros((12, 8, 8, 3), complex)}, "x_train is complex128"),
        (
            {"x_train": np.array([None] * 12)},
            "cannot be read as an .npz file of plain arrays: an array of Python objects",
        ),
        (
            {"x_train": np.zeros((12, 8, 9, 3), np.uint8)},
            r"x_train has shape \[12, 8, 9, 3\]; images must be",
        ),
        ({"x_train": np.zeros((12, 3, 8, 8), np.uint8)}, r"x_train has shape \[12, 3, 8, 8\]"),
        ({"x_train": np.zeros((12, 8, 8, 5), np.uint8)}, "channels 1 to 4"),
        ({"x_train": np.zeros((12, 3, 3), np.uint8)}, "side 4 or more"),
        ({"x_train": np.zeros((12, 64), np.uint8)}, r"x_train has shape \[12, 64\]"),
        ({"x_train": np.uint8(3)}, r"x_train has shape \[\]"),
        ({"x_test": np.zeros((6, 9, 9, 3), np.uint8)}, "must be alike"),
        ({"x_test": np.zeros((6, 8, 8, 3))}, r"uint8 \[8, 8, 3\] and x_test float32 \[8, 8, 3\]"),
        ({"x_train": floats(np.nan)}, "x_train has NaN"),
        ({"x_train": floats(np.inf)}, "x_train has NaN, infinite"),
        ({"x_train": floats(1e300)}, "too large"),
        ({"y_train": np.zeros(12)}, r"y_train is float64 \[12\]; labels must be integers"),
        ({"y_train": np.zeros((12, 3), int)}, r"y_train is int64 \[12, 3\]; labels must be integers"),
        ({"y_train": np.zeros(11, int)}, "12 images in x_train, 11 labels in y_train"),
        ({"x_train": np.zeros((0, 8, 8, 3), np.uint8), "y_train": np.zeros(0, int)}, "0 images in x_train"),
        ({"y_train": np.zeros(12, int)}, "y_train has 0 only; there must be 2 or more classes"),
        ({"y_train": np.full(12, 2**64 - 1, np.uint64)}, "y_train has 18446744073709551615 only"),
        ({"y_test": np.full(6, 3)}, "y_test has 3, a class that y_train lacks"),
        ({"x_test": None, "y_test": None, "y_train": np.zeros(12, int)}, "y_train has 0 only"),
    ],
)
def test_what_is_no_data_set_is_refused_in_one_line(tmp_path, changes, message):
    path = saved(tmp_path / "own.npz", **arrays(**changes))
    with pytest.raises(InputError, match=message) as refusal:
        datasets.npz_dataset(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off", b"\x80\x04K\x01."])
def test_what_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read as an \.npz file"):
        datasets.npz_dataset(tmp_path / "own.npz")


def test_a_single_array_or_a_folder_is_refused(tmp_path):
    np.save(tmp_path / "own.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"cannot be read as an \.npz file"):
        datasets.npz_dataset(tmp_path / "own.npy")
    with pytest.raises(InputError, match="there is no file"):
        datasets.npz_dataset(tmp_path)


# Named data sets, small ones in place of the real


class Small:
    """Stands for a class of `torchvision.datasets`: ten training and five test images."""

    made = arrays(n=10, classes=5, side=32)

    def __init__(self, root, train=True, split=None, download=False):
        assert download and Path(root).is_dir()
        (Path(root) / "archive.tar.gz").write_bytes(b"as downloaded")
        kind = split or ("train" if train else "test")
        self.data, labels = self.made[f"x_{kind}"], self.made[f"y_{kind}"]
        if split:
            self.data, self.labels = self.data.transpose(0, 3, 1, 2), labels
        else:
            self.targets = labels.tolist()


@pytest.fixture
def small(monkeypatch):
    """The names cifar10 and svhn standing for ten small images, and torchvision for a source of them."""
    import torchvision

    for name, loader in (("cifar10", "CIFAR10"), ("svhn", "SVHN")):
        monkeypatch.setitem(downloads.SOURCES, name, downloads.Source(loader, 10, 5, 5))
        monkeypatch.setattr(torchvision.datasets, loader, Small)


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_download_is_kept_sorted_and_not_repeated(small, folder, monkeypatch, name):
    first = datasets.images(Dataset(name))
    assert [path.name for path in folder.iterdir()] == [f"{name}.npz"]
    assert first.y_train.tolist() == sorted(Small.made["y_train"].tolist())
    assert {i.tobytes() for i in first.x_train} == {i.tobytes() for i in Small.made["x_train"]}
    monkeypatch.setattr(Small, "__init__", None)  # a second download would fail
    datasets.images.cache_clear()
    assert same(datasets.images(Dataset(name)), first)
    assert len(datasets.images(Dataset(name, train=5)).x_train) == 5


def test_failed_download_tells_the_two_ways_out(small, folder, monkeypatch):
    def fail(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(Small, "__init__", fail)
    with pytest.raises(InputError) as refusal:
        datasets.images(Dataset("cifar10"))
    assert str(refusal.value) == (
        "downloading cifar10 failed (no route to host): run `repro data cifar10` where there is a network, "
        "or `repro data cifar10 --from FILE.npz` with a copy of it"
    )
    assert not list(folder.iterdir())


def test_download_of_something_else_is_refused(folder, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Small)
    with pytest.raises(InputError, match="the download is not cifar10"):
        downloads.download("cifar10")
    assert not list(folder.iterdir())


@given(st.permutations(range(10)), st.permutations(range(5)))
def test_any_order_of_a_data_set_gives_the_same_arrays(train, test):
    m = Small.made
    shuffled = [m["x_train"][train], m["y_train"][train], m["x_test"][test], m["y_test"][test]]
    a = downloads._canonical(npz.pack(list(m.values()), 5))
    assert same(downloads._canonical(npz.pack(shuffled, 5)), a)
    assert same(downloads._canonical(a), a)


def test_import_of_a_shuffled_copy_equals_the_download(small, folder, tmp_path):
    downloaded = downloads.download("cifar10")
    (folder / "cifar10.npz").unlink()
    order = np.random.default_rng(0).permutation(10)
    copy = Small.made | {name: Small.made[name][order] for name in ("x_train", "y_train")}
    imported = downloads.import_npz("cifar10", saved(tmp_path / "copy.npz", **copy))
    assert same(imported, downloaded)
    assert same(datasets.images(Dataset("cifar10")), downloaded)


def test_import_of_something_else_is_refused_and_nothing_written(folder, tmp_path):
    path = saved(tmp_path / "fake.npz", **arrays(side=32))
    with pytest.raises(InputError, match=r"fake.npz is not cifar10: expected its 50000 training and 10000"):
        downloads.import_npz("cifar10", path)
    with pytest.raises(InputError, match="unknown data set 'digits'"):
        downloads.import_npz("digits", path)
    assert not folder.exists()


def test_right_shapes_with_wrong_pixels_are_refused(small, folder, tmp_path, monkeypatch):
    known = dataclasses.replace(
        downloads.SOURCES["cifar10"], fingerprint=downloads.download("svhn").fingerprint
    )
    monkeypatch.setitem(downloads.SOURCES, "cifar10", known)
    wrong = {name: array.copy() for name, array in Small.made.items()}
    wrong["x_test"][0, 0, 0, 0] ^= 1
    with pytest.raises(InputError, match="is not cifar10"):
        downloads.import_npz("cifar10", saved(tmp_path / "wrong.npz", **wrong))
    assert not (folder / "cifar10.npz").exists()
    saved(folder / "cifar10.npz", **wrong)
    with pytest.raises(InputError, match=r"is not cifar10.*move it elsewhere, and run `repro data cifar10`"):
        datasets.images(Dataset("cifar10"))


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damaged_cache_is_refused(small, folder, damage):
    downloads.download("cifar10")
    path = folder / "cifar10.npz"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-5000])
    with pytest.raises(InputError, match=r"cifar10.npz cannot be read.*move it elsewhere"):
        datasets.images(Dataset("cifar10"))
    assert {row["name"]: row["state"] for row in datasets.describe()}["cifar10"] == "unusable"


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_a_copy_put_there_by_hand_is_taken_as_it_is(small, folder, monkeypatch, capsys, name):
    """In any order, with what else it holds; a command to fetch it changes nothing."""
    made = downloads.download(name)
    order = np.random.default_rng(0).permutation(10)
    copy = Small.made | {array: Small.made[array][order] for array in ("x_train", "y_train")}
    path = saved(folder / f"{name}.npz", **copy, names=np.arange(3))
    before = path.read_bytes()
    monkeypatch.setattr(Small, "__init__", None)  # a download would fail
    datasets.images.cache_clear()
    assert same(datasets.images(Dataset(name)), made)
    for more in ([], ["--from", str(path)]):
        with pytest.raises(SystemExit, match="0"):
            cli.main(["data", name, *more])
        assert path.read_bytes() == before
    assert f"{name}: 10 training and 5 test images" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["images", "a page", "nothing"])
def test_what_is_not_ours_is_neither_replaced_nor_said_to_be_deleted(
    small, folder, tmp_path, capsys, content
):
    sound = saved(tmp_path / "sound.npz", **Small.made)
    folder.mkdir()
    path = folder / "cifar10.npz"
    if content == "images":
        saved(path, **arrays(n=20, classes=5, side=32))
    else:
        path.write_bytes(b"<!DOCTYPE html>\n<title>404</title>" * (content == "a page"))
    before = path.read_bytes()
    for command in (["data", "cifar10"], ["data", "cifar10", "--from", str(sound)], DOWNLOADED):
        with pytest.raises(SystemExit, match="2"):
            cli.main(command)
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and str(path) in line and "move it elsewhere" in line
        assert "delete" not in line and path.read_bytes() == before
    with pytest.raises(SystemExit, match="0"):
        cli.main(["data"])
    assert re.search("cifar10 +unusable", capsys.readouterr().out) and path.read_bytes() == before


DOWNLOADED = ["run", "warm_start", "--profile", "smoke", "--set", "dataset=cifar10", "--set", "batch_size=2"]
DOWNLOADED += ["--set", "train=10", "--set", "test=5"]


def test_a_data_set_of_no_known_pixels_is_not_replaced_by_another(small, folder, tmp_path, capsys):
    downloads.download("svhn")
    before = (folder / "svhn.npz").read_bytes()
    other = saved(
        tmp_path / "other.npz", **{n: a[::-1] ^ 1 if n[0] == "x" else a for n, a in Small.made.items()}
    )
    with pytest.raises(SystemExit, match="2"):
        cli.main(["data", "svhn", "--from", str(other)])
    line = capsys.readouterr().err
    assert "holds other images than" in line and line.count("\n") == 1
    assert (folder / "svhn.npz").read_bytes() == before


NO_ARCHIVES = {
    "a page": (b"<!DOCTYPE html>\n<html><title>404 Not Found", "begins with b'<!DOCTYPE html>"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "b'version https://git-lfs"),
    "a link of git-annex": (b"/annex/objects/SHA256E-s17", "b'/annex/objects"),
    "a pickle": (b"\x80\x04K\x01.", r"b'\\x80\\x04K"),
    "one array": (b"\x93NUMPY\x01\x00v\x00{'descr'", "NUMPY"),
    "gzip": (b"\x1f\x8b\x08\x00", r"x1f\\x8b"),
    "nothing": (b"", "b''"),
    "half of it": (b"PK\x03\x04 cut off", "not a zip file"),
}


@pytest.mark.parametrize("kind", NO_ARCHIVES)
@pytest.mark.parametrize("command", [["run", "--set", "dataset={}"], ["data", "cifar10", "--from", "{}"]])
def test_what_is_no_archive_is_said_to_be_what_it_is(folder, tmp_path, capsys, kind, command):
    content, words = NO_ARCHIVES[kind]
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        cli.main([word.format(tmp_path / "own.npz") for word in command])
    line = capsys.readouterr().err
    assert re.search(words, line) and "own.npz cannot be read as an .npz file of plain arrays" in line
    assert line.count("\n") == 1 and "pickle" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["own.npz"]


def test_cache_that_cannot_be_written_is_one_line(small, tmp_path, monkeypatch):
    (tmp_path / "taken").write_bytes(b"")
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "taken"))
    with pytest.raises(InputError, match="REPRO_DATA names another folder"):
        downloads.import_npz("cifar10", saved(tmp_path / "copy.npz", **Small.made))


def test_describe_lists_what_is_here(small, folder):
    before = {row["name"]: SimpleNamespace(**row) for row in datasets.describe()}
    assert list(before) == ["digits", "cifar10", "cifar100", "svhn"]
    assert before["digits"].state == "built in"
    assert before["cifar10"].state == "not here"
    assert not folder.exists()
    made = downloads.download("cifar10")
    after = {row["name"]: SimpleNamespace(**row) for row in datasets.describe()}["cifar10"]
    assert (after.state, after.train, after.test, after.fingerprint) == ("here", 10, 5, made.fingerprint)
    assert after.path == str(folder / "cifar10.npz")


@pytest.mark.slow
def test_real_cifar10(folder, tmp_path):
    if not (MOSAICS / "unpack_cifar10.py").exists():
        pytest.skip("the CIFAR-10 mosaics do not lie beside this checkout")
    script = [sys.executable, str(MOSAICS / "unpack_cifar10.py"), str(tmp_path / "copy.npz")]
    subprocess.run(script, check=True)
    made = downloads.import_npz("cifar10", tmp_path / "copy.npz")
    assert made.fingerprint == downloads.SOURCES["cifar10"].fingerprint
    mean, std = made.normalization
    np.testing.assert_allclose(mean / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)
    np.testing.assert_allclose(std / 255, [0.2470, 0.2435, 0.2616], atol=5e-5)
    assert same(datasets.images(Dataset("cifar10")), made)
    part = datasets.images(Dataset("cifar10", train=5000, test=1000))
    assert np.bincount(part.y_train).tolist() == [500] * 10
    assert np.bincount(part.y_test).tolist() == [100] * 10


# Samples and held-out images


SAMPLED = Dataset("digits", 300, 200, 0.1)


def test_a_numbered_sample_has_other_training_images_and_the_same_test_images(tmp_path):
    first, other = (datasets.images(dataclasses.replace(SAMPLED, sample=n)) for n in (0, 7))
    assert first.fingerprint != other.fingerprint
    assert np.array_equal(first.x_test, other.x_test)
    assert not np.array_equal(first.x_train, other.x_train)


def test_held_out_images_are_training_images_that_are_not_trained_on():
    whole = datasets.images(SAMPLED)
    held = datasets.images(dataclasses.replace(SAMPLED, held_out=True))
    test = {image.tobytes() for image in whole.x_test}
    assert not test & {image.tobytes() for image in held.x_test}
    assert not {image.tobytes() for image in held.x_train} & {image.tobytes() for image in held.x_test}


@pytest.mark.parametrize("sample", [0, 3])
def test_held_out_images_of_a_file_are_a_tenth_of_its_training_images(tmp_path, sample):
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8), np.arange(200) % 4
    np.savez(tmp_path / "a.npz", x_train=x[:160], y_train=y[:160], x_test=x[160:], y_test=y[160:])
    dataset = dataclasses.replace(datasets.npz_dataset(tmp_path / "a.npz"), sample=sample, held_out=True)
    found = datasets.images(dataset)
    assert (len(found.y_train), len(found.y_test)) == datasets.counts(dataset)[:2] == (144, 16)
    trained = {image.tobytes() for image in found.x_train}
    assert {image.tobytes() for image in x[:160]} == trained | {image.tobytes() for image in found.x_test}
    few = datasets.images(dataclasses.replace(dataset, train=40))
    assert np.array_equal(few.x_test, found.x_test)  # the same whatever the number of training images
    assert np.bincount(few.y_train).tolist() == [10] * 4


# Folders of images, and data sets of PyTorch


def pictures(folder, *names, mode="RGB"):
    """A folder with pictures of these names, 8 x 8, each of other pixels."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if mode == "I;16" else mode).convert(mode).save(folder / name)
    return folder


def of_folder(folder, *settings):
    return profiles.profile("smoke", [f"dataset={folder}", "size=8", "batch_size=2", *settings]).data()


CLASSES = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(6)]


def test_links_to_folders_are_followed(tmp_path):
    pictures(tmp_path / "one", *CLASSES)
    pictures(tmp_path / "two", *reversed(CLASSES))
    for name in ("one", "two"):
        (tmp_path / "links" / name).mkdir(parents=True)
        for label in ("cat", "dog"):
            (tmp_path / "links" / name / label).symlink_to(tmp_path / name / label)
    found = [of_folder(tmp_path / "links" / name).fingerprint for name in ("one", "two")]
    assert found == [of_folder(tmp_path / name).fingerprint for name in ("one", "two")]
    assert found[0] != found[1]


def test_hidden_pictures_are_left_out(tmp_path):
    own = pictures(tmp_path / "own", *CLASSES)
    plain = of_folder(own)
    pictures(own, ".thumbs/0.png", "cat/.ipynb_checkpoints/0.png")
    (own / "dog" / "._0.png").write_bytes(b"no picture")
    assert of_folder(own).fingerprint == plain.fingerprint


def renamed(*names):
    """A change of a folder: its pictures lie in folders of these names instead."""

    def change(folder):
        (folder / "cat").rename(folder / names[0])
        (folder / "dog").rename(folder / names[1])

    return change


def cut(folder):
    content = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (renamed("train", "val"), (), "it has train, val; there must be train and test, or classes"),
        (renamed("Train", "Test"), (), "it has Test, Train; there must be train and test"),
        (lambda folder: (folder / "bird").mkdir(), (), r"bird has no images \(.jpg, "),
        (lambda folder: pictures(folder, "cat/0.png", mode="I;16"), (), "cat/0.png .* its mode is I"),
        (cut, (), "cat/0.png is no image to use: .*truncated"),
        (lambda folder: None, ("size=3",), "size must be at least 4, not 3"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path, folder, change, settings, message):
    change(pictures(tmp_path / "own", *CLASSES))
    with pytest.raises(InputError, match=message) as refusal:
        of_folder(tmp_path / "own", *settings)
    assert "\n" not in str(refusal.value)
    assert not folder.exists()


def test_a_class_of_which_no_image_is_left_to_train_on_is_refused(tmp_path):
    made = arrays(x_test=None, y_test=None, y_train=np.arange(12))
    with pytest.raises(InputError, match=r"class \d+ has too few images"):
        datasets.npz_dataset(saved(tmp_path / "own.npz", **made))
    made["y_train"] = np.arange(12) // 10  # only the second class is small, and its images are trained on
    assert datasets.counts(datasets.npz_dataset(saved(tmp_path / "own.npz", **made))) == (10, 2, 2)


class Raising:
    def __len__(self):
        return 3

    def __getitem__(self, i):
        raise KeyError(f"no image\n{i}")


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
PAIRS = torch.utils.data.TensorDataset(X, Y)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "int hold no images .* a pair at each index: .*no len"),
        ({}, "dict hold no"),
        ({"x": X, "y": Y}, "dict hold no"),
        ((X, Y, X, Y), "tuple hold no"),
        ((X.numpy(), Y.numpy()), "ndarray hold no"),
        ((PAIRS, None), "NoneType hold no"),
        (Stream(), "Stream hold no"),
        (torch.utils.data.DataLoader(PAIRS), "DataLoader hold no"),
        (Raising(), "Raising hold no .*no image"),
        (torch.utils.data.TensorDataset(X, Y, Y), "TensorDataset hold no"),
        (torch.utils.data.TensorDataset(X, Y + 0.5), "PyTorch data: y_train is float32"),
        (torch.utils.data.TensorDataset(X[:, :, :3], Y), r"PyTorch data: x_train has shape \[12, 3, 8, 3\]"),
        ([(image, "a cat") for image in X], "PyTorch data: y_train is <U5"),
    ],
)
def test_what_is_no_data_set_of_pytorch_is_refused_in_one_line(tmp_path, folder, data, message):
    with pytest.raises(InputError, match=message) as refusal:
        repro.gap(data, profile="smoke")
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_parts_of_a_data_set_are_a_pair_and_gradients_do_no_harm():
    data = torch.utils.data.TensorDataset(X.clone().requires_grad_(), Y)
    parts = torch.utils.data.random_split(data, [8, 4], torch.Generator().manual_seed(0))
    full = npz.read(Path(folders.place(parts)))
    assert (full.x_train.shape, full.x_test.shape) == ((8, 8, 8, 3), (4, 8, 8, 3))
    assert np.array_equal(full.x_train[0], X[parts[0].indices[0]].movedim(0, -1))
