"""Bad command lines by the hundred: each is one line and exit code 2, and writes nothing."""

import contextlib
import io
import math
import os
import re
import string
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.store import write
from repro import cli, questions
from repro.data.downloads import SOURCES
from repro.profiles import FIELDS, PROFILES
from repro.store.records import Store

SIGNS = st.characters(exclude_categories=["Cs"])  # as by default, without asking a codec of each sign
WORDS = (
    st.text(SIGNS, max_size=12)
    | st.text(string.printable, max_size=12)
    | st.sampled_from(["", "None", "[1]", "{}"])
)
COMMANDS = st.sampled_from(["run", "plan", "status", "claims", "book"])


def fails(kind):
    """Whether Python cannot make that kind of number of a text."""

    def failing(text):
        try:
            kind(text)
        except ValueError:
            return text != "all"
        return False

    return failing


def fields(kind):
    return st.sampled_from([name for name, found in FIELDS.items() if found == kind and name != "name"])


def setting(field, value):
    return st.tuples(COMMANDS, field, value).map(
        lambda p: ([p[0], "--profile", "smoke", "--set", f"{p[1]}={p[2]}"], {})
    )


def option(command, name, value):
    return value.map(lambda text: ([*command.split(), name, str(text)], {}))


BELOW, ABOVE = st.integers(max_value=-1), st.integers(min_value=10**9 + 1)
NO_NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf])
SETTINGS = (
    setting(fields(int) | fields(int | None), WORDS.filter(fails(int)) | BELOW | ABOVE)
    | setting(fields(int | None).filter(lambda name: name != "first_seed"), st.just(0))
    | setting(fields(float), WORDS.filter(fails(float)) | NO_NUMBERS | st.floats(max_value=-1e-300))
    | setting(st.sampled_from(["learning_rate", "until"]), st.just(0))
    | setting(st.just("until"), st.floats(min_value=1, exclude_min=True))
    | setting(fields(bool), WORDS.filter(lambda text: text.strip() not in ("true", "false")))
    | setting(st.just("model"), WORDS.filter(str.strip))
    | setting(WORDS.map("model.{}".format), WORDS)
    | setting(WORDS.filter(lambda text: text.split("=")[0].strip() not in FIELDS), WORDS)
    | setting(st.just("dataset"), WORDS.filter(lambda text: text.strip() not in {"digits", *SOURCES}))
)
NAMES = {"studies": questions.STUDIES, "profiles": PROFILES}
OPTIONS = (
    option("run --profile smoke", "--seeds", WORDS.filter(fails(int)) | BELOW | ABOVE)
    | option(
        "run --profile smoke", "--device", WORDS.filter(lambda text: text not in ("auto", "cpu", "cuda"))
    )
    | option("run --profile smoke", "--precision", WORDS.map("{}?".format))
    | option(
        "run --profile smoke", "--time-limit", WORDS.filter(lambda t: not re.fullmatch(r"[\d.]+[smh]?\n?", t))
    )
    | option("run --profile smoke", "--only", WORDS.filter(lambda text: "=" not in text))
    | option("run reset --profile smoke", "--only", WORDS.map(lambda text: f"modules={text}x"))
    | option("run --profile smoke", "--on", WORDS.filter(lambda text: not re.match("slurm$|t..:", text)))
    | option("run --profile smoke", "--jobs", WORDS.filter(fails(int)) | st.integers())
    | option("run", "--profile", WORDS.filter(lambda text: text not in PROFILES))
    | option(
        "plan --profile smoke", "--speed", WORDS.filter(fails(float)) | NO_NUMBERS | st.floats(max_value=0)
    )
    | option("plan --profile smoke --speed 9", "--gpus", WORDS.filter(lambda t: not re.match(r"[1-9]", t)))
    | option("plan --profile smoke --speed 9", "--price", WORDS | st.floats())
    | option("plan --profile smoke --speed 9 --gpus 8", "--price", st.floats(max_value=0) | NO_NUMBERS)
    | option("book --profile smoke", "--jobs", WORDS.filter(fails(int)) | st.integers(max_value=0))
    | option("book --profile smoke", "--chapters", WORDS.map("{}?".format))
    | option("book --profile smoke --chapters stages", "--device", WORDS.map(lambda text: f"{text}?"))
    | option("data", "--from", WORDS)
    | option("data svhn", "--from", WORDS)
    | WORDS.map(lambda text: (["results", "verify", f"{text}?"], {}))
    | WORDS.map(lambda text: (["data", f"{text}?"], {}))
    | WORDS.map(lambda text: (["run", f"{text}?"], {}))
    | WORDS.map(lambda text: ([f"{text}?"], {}))
    | WORDS.map(lambda text: (["run", f"--{text}?"], {}))
)
PLACES = st.sampled_from(
    ["FILE", "FILE/x", "~nobody_of_this_name", "~nobody_of_this_name/x", 300 * "x", "/proc/1/x"]
)
FOLDERS = st.sampled_from([".", "./", "empty", "one class", "no [images].d", "texts", "broken", "parts"])
OWN = st.sampled_from(["FILE.py", "exits.py", "raises.py", "bytes.py", "no_function.py", "empty [x].py"])
PATHS = (
    OWN.map(lambda name: (["run", f"./{name}", "--profile", "smoke"], {}))
    | st.tuples(st.sampled_from(["plan", "run"]), OWN).map(
        lambda p: ([p[0], "--profile", "smoke", "--set", f"model=./{p[1]}:network"], {})
    )
    | PLACES.map(lambda place: (["plan", "--profile", "smoke", "--set", f"model={place}.py:network"], {}))
    | PLACES.map(lambda place: (["claims", "--profile", "smoke", "--set", f"model={place}:network"], {}))
    | PLACES.map(lambda place: (["run", "--profile", "smoke"], {"REPRO_RESULTS": place}))
    | PLACES.map(lambda place: (["run", f"{place}.py", "--profile", "smoke"], {}))
    | PLACES.map(lambda place: (["data", "cifar10", "--from", place], {}))
    | PLACES.map(lambda place: (["book", "--profile", "smoke", "--out", place], {}))
    | PLACES.map(lambda place: (["claims", "--set", f"dataset={place}.npz"], {}))
    | (PLACES | FOLDERS).map(lambda place: (["claims", "--set", f"dataset={place}"], {}))
    | st.sampled_from(["shape.npz", "words.npz", "FILE.npz", "a [b].npz"]).map(
        lambda name: (["run", "--profile", "smoke", "--set", f"dataset={name}"], {})
    )
    | st.sampled_from(["REPRO_RESULTS", "REPRO_DATA"]).map(
        lambda n: (["status"], {n: "~nobody_of_this_name"})
    )
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    for name in ("FILE", "FILE.npz", "a [b].npz"):
        (folder / name).write_bytes(b"<html>")
    for name in (
        "one class/a/1.png",
        "no [images].d/a/1.txt",
        "texts/a.txt",
        "broken/a/1.png",
        "broken/b/2.jpg",
        "parts/Train/a/1.png",
        "parts/val/b/2.jpg",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"<html>")
    (folder / "empty").mkdir()
    (folder / os.fsdecode(b"caf\xe9")).touch()
    (folder / "exits.py").write_text("import sys; sys.exit('no')")
    (folder / "raises.py").write_text("def network(): pass\nraise OSError(2, 'no\\nluck', 'file')")
    (folder / "bytes.py").write_bytes(b"network = '\xff\0'")
    (folder / "no_function.py").write_text("network = 3\nSTUDIES = 4")
    (folder / "empty [x].py").touch()
    np.savez(folder / "shape.npz", x_train=np.zeros((8, 3, 4)), y_train=[0], x_test=[0], y_test=[0])
    np.savez(folder / "words.npz", **{name: ["a"] for name in ("x_train", "y_train", "x_test", "y_test")})
    return folder


def called(arguments):
    """Exit status, standard output and standard error of a command in this process."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return end.value.code, out.getvalue(), error.getvalue()


def state(folder):
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def check(here, bad):
    arguments, environment = bad
    before = state(here)
    own = {"REPRO_RESULTS": str(here / "results"), "REPRO_DATA": str(here / "data")} | environment
    with mock.patch.dict(os.environ, own), contextlib.chdir(here):
        status, out, line = called(arguments)
    assert (status, out) == (2, ""), (status, out, line)
    assert line.startswith("repro: ") and line.count("\n") == 1 and len(line.splitlines()) == 1, line
    assert state(here) == before
    return line


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=SETTINGS)
def test_bad_settings(here, bad):
    check(here, bad)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=OPTIONS)
def test_bad_options(here, bad):
    check(here, bad)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=PATHS)
def test_bad_paths(here, bad):
    check(here, bad)


QUESTION = """
from repro.analysis.claims import Claim
from repro.study import WARM, Arm, Study, crossed, pair, tuning


@crossed
def cases(profile):
    yield from pair(profile)
    yield Arm("x", (tuning(profile, shift=1),), {"rate": 2})


STUDIES = (Study("mine", "?", "none", "none", cases),)
CLAIMS = (Claim("c", "C.", "none", "mine", lambda arm: arm("x", rate=2) - arm(WARM), direction="less"),)
"""
CONTRAST = 'lambda arm: arm("x", rate=2) - arm(WARM)'
PLANS = {  # what is changed in QUESTION, and the refusal
    "an arm twice": (
        "yield Arm",
        "yield from pair(profile)\n    yield Arm",
        "mine: two arms are called fresh: tell them apart by condition or factors",
    ),
    "no @crossed": ("@crossed\n", "", "mine: it gives no list of cases: decorate its function with @crossed"),
    "None for a factor": ('"rate": 2', '"rate": None', "mine: a factor is text or a number, not None"),
    "a list for a factor": ('"rate": 2', '"rate": [2]', "mine: a factor is text or a number, not [2]"),
    "two studies of a name": ("STUDIES = ", "STUDIES = 2 * ", "two studies 'mine'"),
    "two claims of an id": ("CLAIMS = ", "CLAIMS = 2 * ", "two claims 'c'"),
    "no arms": (
        "    yield from pair",
        "    return\n    yield from pair",
        "mine: it has no runs at any profile",
    ),
    "an unknown direction": ('"less"', '"moer"', "c: direction is less, more or same, not 'moer'"),
    "no function in a claim": (
        f', {CONTRAST}, direction="less"',
        "",
        "c: it needs a function, as contrast or as effect",
    ),
    "a hook without code": ("shift=1", "hook=print", "mine: hook must be code(FUNCTION), not <built-in"),
    "half an epoch": ("shift=1", "epochs=1.5", "mine: epochs must be a whole number, not 1.5"),
}
JUDGED = {  # what the claim measures instead, and the refusal
    "an unknown arm": ('lambda arm: arm("y")', "no arm is y: choose from fresh; warm start; x, rate 2"),
    "an unknown value": ('lambda arm: arm("x", rate=3)', "no arm is x, rate 3: choose from x, rate 2"),
    "an unknown factor": ('lambda arm: arm("x", rat=2)', "no arm is x, rat 2: choose from x, rate 2"),
    "no held-out images": ('lambda arm: arm.best_rate("x")', "no arm x is tested on held-out images"),
    "an error": ("lambda arm: 1 / 0", "ZeroDivisionError: division by zero"),
    "one number": (
        "effect=lambda results: 0.5",
        "must be a number for each seed (pandas.Series), not 0.5",
    ),
    "an unknown column": ("effect=lambda results: results.table['nois']", "KeyError: 'nois'"),
}


def asked(folder, old="", new=""):
    """The path of a question in which `new` stands in place of `old`."""
    assert old in QUESTION
    (folder / "mine.py").write_text(QUESTION.replace(old, new, 1))
    return str(folder / "mine.py")


@pytest.mark.parametrize("name", PLANS)
def test_a_question_that_cannot_be_planned_is_refused_before_training(tmp_path, name):
    old, new, said = PLANS[name]
    line = check(tmp_path, (["run", asked(tmp_path, old, new), "--profile", "smoke"], {}))
    assert f"mine.py: {said}" in line.replace("claim ", ""), line


def recorded(folder, path):
    """Write made-up records of all runs of a question, so that its claims can be judged."""
    store, profile = Store(folder / "results" / "smoke"), PROFILES["smoke"]
    for case in questions.studies([path])[0].cases(profile):
        write(store, case.run)


@pytest.mark.parametrize("name", JUDGED)
def test_a_claim_that_cannot_be_judged_is_refused_in_one_line(tmp_path, name):
    measure, said = JUDGED[name]
    path = asked(tmp_path, CONTRAST, measure)
    recorded(tmp_path, path)
    line = check(tmp_path, (["claims", path, "--profile", "smoke"], {}))
    assert "mine.py: claim c: " in line and said in line, line


def test_a_claim_waits_for_what_is_planned(tmp_path):
    path = asked(tmp_path)
    store = {"REPRO_RESULTS": str(tmp_path / "results")}
    for word in ("not run", "not tested"):
        with mock.patch.dict(os.environ, store):
            status, out, _ = called(["claims", path, "--profile", "smoke"])
        assert status == 0 and word in out, out
        recorded(tmp_path, path)
