"""What people meet on machines that are not ours, each through the command line.

Where what is met is of a process (its output, its environment, what it cannot import), in one of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from papermill.cli import papermill

from repro import cli, run_study, scale
from repro.config import InputError

ROOT = Path(__file__).resolve().parents[1]
FULL = Path("/dev/full")
SMALL = ("--profile", "smoke", "--seeds", "1")

# Loaded by every Python that finds it on its path: what other systems lack.
NO_HOME = """
import os, pwd
os.environ.pop("HOME", None)
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
"""
WINDOWS = """
import builtins
real = builtins.__import__
def limited(name, globals=None, *rest, **named):
    if name in ("fcntl", "resource", "pwd") and (globals or {}).get("__name__", "").startswith("repro"):
        raise ModuleNotFoundError(name, name=name)
    return real(name, globals, *rest, **named)
builtins.__import__ = limited
"""
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def command(*arguments, here, lacks="", shell=None, **environment):
    """The finished process of `repro`, called from a folder; `lacks` says what the system does not have."""
    path = [str(ROOT)]
    if lacks:
        (here / ".lacks").mkdir(exist_ok=True)
        (here / ".lacks" / "sitecustomize.py").write_text(lacks)
        path.insert(0, ".lacks")  # relative, as people have it
    call = [sys.executable, "-P", "-m", "repro", *map(str, arguments)]
    if shell:
        call = ["sh", "-c", f'exec "$@" {shell}', "sh", *call]
    own = os.environ | {"PYTHONPATH": os.pathsep.join(path)} | environment
    return subprocess.run(call, cwd=here, env=own, capture_output=True, encoding="utf-8", errors="replace")


@pytest.fixture
def called(here, monkeypatch, capsys):
    """Calls `repro` from a folder in this process, which all that is not about processes does as well."""

    def call(*arguments, **environment):
        monkeypatch.chdir(here)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end:
            cli.main([*map(str, arguments)])
        told = capsys.readouterr()
        return SimpleNamespace(returncode=end.value.code or 0, stdout=told.out, stderr=told.err)

    return call


def refused(done, *words, status=2):
    """Whether the process ended with one line that has these words."""
    line = done.stderr
    assert done.returncode == status, line
    assert line.startswith("repro: ") and line.count("\n") == 1, line
    assert all(word in line for word in words), line
    return True


def images(path):
    random = np.random.default_rng(0)
    np.savez(
        path,
        x_train=random.integers(0, 255, (64, 8, 8), dtype=np.uint8),
        y_train=np.arange(64) % 4,
        x_test=random.integers(0, 255, (16, 8, 8), dtype=np.uint8),
        y_test=np.arange(16) % 4,
    )
    return path


@pytest.fixture
def here(tmp_path):
    """A folder whose name is text in any place where a name could be taken for a pattern or a mark-up."""
    folder = tmp_path / "ö [b] {c}, d's :bug:"
    folder.mkdir()
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lacks")


# 1, 2, 10, 16, 25: paths


@pytest.mark.slow
def test_a_book_of_own_images_by_relative_paths_of_any_characters_without_a_home(here):
    images(here / "a,b=[x] {y}.npz")
    own = ("--set", "dataset=a,b=[x] {y}.npz", "--set", "train=all", "--set", "test=all")
    for module in ("random", "inspect", "torch"):  # imported by nothing that a command starts
        (here / f"{module}.py").write_text("raise SystemExit('not this file')")
    out = here / "out [1]"
    book = ("book", *SMALL, *own, "--chapters", "warm_start", "--out", out.name)
    done = command(*book, here=here, lacks=NO_HOME, REPRO_RESULTS="my [results]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"3 of 3 runs recorded in {here}/my [results]/smoke\n" in done.stdout
    assert f"\n{out}/_build/html/index.html\n" in done.stdout
    made = {"a,b=[x] {y}.npz", "inspect.py", "my [results]", "out [1]", "random.py", "torch.py"}
    assert set(names(here)) == made
    assert len([n for n in names(here / "my [results]" / "smoke") if n.endswith(".json")]) == 3
    executed = (out / "_build" / "executed" / "01_warm_start.runs.csv").read_text(encoding="utf-8")
    assert len(executed.splitlines()) == 1 + 2 + 3  # names of columns, then the runs of two studies
    page = (out / "_build/html/book/chapters/01_warm_start.html").read_text(encoding="utf-8")
    assert "has no results" not in page and str(here) not in page

    done = command(*book, "--device", "none", here=here, lacks=NO_HOME, REPRO_RESULTS="my [results]")
    assert done.returncode == 0 and "warm_start         2   2        0" in done.stdout


def test_records_lie_where_a_relative_path_says(here, called):
    done = called("run", "warm_start", *SMALL, REPRO_RESULTS="r [1]")
    assert done.stdout == f"2 of 2 runs recorded in {here}/r [1]/smoke\n"
    done = called("results", "verify", REPRO_RESULTS="r [1]")
    assert f"{here}/r [1]/smoke: 2 sound records" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["run", "--set", "dataset=~nobody_of_this_name/x.npz"], {}),
        (["data", "cifar10", "--from", "~nobody_of_this_name/x.npz"], {}),
        (["status"], {"REPRO_RESULTS": "~nobody_of_this_name"}),
        (["data"], {"REPRO_DATA": "~nobody_of_this_name/x"}),
        (["book", "--out", "~nobody_of_this_name"], {}),
    ],
)
def test_a_home_that_there_is_not_is_one_line(here, called, arguments, environment):
    assert refused(called(*arguments, **environment), "no home folder", "~nobody_of_this_name")
    assert names(here) == []


def test_without_a_home_the_commands_work(here):
    for arguments in (["data"], ["status"], ["results", "verify", "cifar10"], ["claims"]):
        lying = {"REPRO_RESULTS": str(ROOT / "results"), "REPRO_DATA": "", "TMPDIR": str(here)}
        done = command(*arguments, here=here, lacks=NO_HOME, **lying)
        assert done.returncode == 0 and done.stderr == "", done.stderr
    assert refused(command("status", here=here, lacks=NO_HOME, REPRO_RESULTS="~/x"), "~/x")


# 8, 9, 27: refused at once


TOO_MUCH = "1" + 24 * "0"
AT_ONCE = {
    "jobs": (["book", "--jobs", "0"], ["--jobs"]),
    "no chapter": (["book", "--chapters", ""], ["unknown chapter ''"]),
    "out is a file": (["book", *SMALL, "--out", "FILE"], ["cannot write in", "FILE/_build", "--out"]),
    "out in a file": (["book", *SMALL, "--out", "FILE/x/y"], ["cannot write in", "FILE/x/y"]),
    "out is read-only": (["book", *SMALL, "--out", "/proc/1/x"], ["cannot write in /proc/1/x", "--out"]),
    "out is long": (["book", *SMALL, "--out", 300 * "x"], ["cannot write in", "--out"]),
    "results is a file": (["run", *SMALL], ["cannot read", "FILE/r/smoke", "REPRO_RESULTS"]),
    "from without a name": (["data", "--from", "FILE"], ["--from needs the name", "cifar10"]),
    "price without GPUs": (["plan", "--speed", "1", "--price", "2"], ["--price", "--gpus"]),
    "a price of nothing": (["plan", "--speed", "1", "--gpus", "1", "--price", "nan"], ["--price", "nan"]),
    "no speed": (["plan", "--speed", "0", "--gpus", "1"], ["--speed takes a number above 0, not 0"]),
    "any speed": (["plan", "--speed", "inf"], ["--speed takes a number above 0, not inf"]),
    "GPUs without speed": (["plan", "--gpus", "8"], ["--gpus needs a --speed"]),
    "jobs without SLURM": (["run", "--jobs", "3"], ["--jobs", "--on slurm"]),
    "no cluster": (["run", *SMALL, "--on", ""], ["--on takes slurm or an address", "''"]),
    "seeds": (["plan", "--seeds", "100000000"], ["seeds must be at most 1000, not 100000000"]),
    "seeds of studies": (["status", "--set", "study_seeds=1001"], ["study_seeds must be at most 1000"]),
    "first seed": (["plan", "--set", f"first_seed={TOO_MUCH}"], ["first_seed must be at most", TOO_MUCH]),
    "width": (["run", *SMALL, "--set", f"width={TOO_MUCH}"], ["width must be at most", TOO_MUCH]),
    "epochs": (["claims", "--set", f"pretraining_epochs={TOO_MUCH}"], ["pretraining_epochs must be at most"]),
    "GPUs": (["plan", "--speed", "1", "--gpus", "100000000"], ["--gpus", "100000000"]),
}


@pytest.mark.parametrize("name", AT_ONCE)
def test_what_can_be_refused_is_refused_before_the_first_step(here, called, name):
    arguments, words = AT_ONCE[name]
    (here / "FILE").write_bytes(b"mine")
    results = here / ("FILE/r" if name == "results is a file" else "results")
    done = called(*arguments, REPRO_RESULTS=str(results))
    assert refused(done, *words) and done.stdout == ""
    assert names(here) == ["FILE"] and (here / "FILE").read_bytes() == b"mine"


# 11, 24: whose commit

COMMIT = "from repro.store.records import commit; print(commit())"


def git(*arguments, at):
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    call = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(call, cwd=at, env=own, check=True, capture_output=True, text=True).stdout.strip()


def commit_of(package, **environment):
    own = os.environ | {"PYTHONPATH": str(package)} | environment
    call = [sys.executable, "-P", "-c", COMMIT]
    return subprocess.run(call, env=own, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path):
    """Somebody else's repository, with one commit."""
    folder = tmp_path / "project"
    folder.mkdir()
    git("init", "-q", at=folder)
    (folder / "theirs").write_text("theirs")
    (folder / ".gitignore").write_text(".venv\n__pycache__\n")
    git("add", ".", at=folder)
    git("commit", "-qm", "Theirs", at=folder)
    return folder


@pytest.mark.parametrize("place", [".venv/lib/python3/site-packages", "vendored", "."])
def test_the_commit_of_another_project_is_not_ours(project, place):
    shutil.copytree(ROOT / "repro", project / place / "repro")
    assert commit_of(project / place) == "None"
    if place == "vendored":
        git("add", ".", at=project)
        git("commit", "-qm", "A copy", at=project)
        assert commit_of(project / place) == "None"
    if place == ".":
        git("add", ".", at=project)
        git("commit", "-qm", "Ours", at=project)
        assert commit_of(project) == git("rev-parse", "HEAD", at=project)
        (project / "repro" / "new.py").touch()
        assert commit_of(project) == git("rev-parse", "HEAD", at=project) + "+"


@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"])
def test_what_git_tells_its_hooks_is_of_another_repository(project, variable):
    value = {"GIT_DIR": project / ".git", "GIT_WORK_TREE": project}.get(variable, project / ".git" / "index")
    assert commit_of(ROOT, **{variable: str(value)}).rstrip("+") == git("rev-parse", "HEAD", at=ROOT)
    settings = {variable: str(value), "REPRO_RESULTS": str(ROOT / "results")}
    done = command("results", "verify", "cifar10", here=project, **settings)
    assert "no commit here" not in done.stderr and done.returncode == 0


# 13: Windows


def test_without_locks_of_files_records_are_read_and_training_says_what_it_lacks(here, called):
    assert called("run", "warm_start", *SMALL).returncode == 0
    for arguments in (
        ["run", "warm_start", *SMALL],
        ["claims", *SMALL],
        ["status", *SMALL],
        ["plan", *SMALL],
    ):
        done = command(*arguments, here=here, lacks=WINDOWS)
        assert done.returncode == 0 and done.stderr == "", done.stderr
    before = {path: path.stat().st_mtime_ns for path in (here.parent / "results").rglob("*")}
    assert refused(command("run", "optimizers", *SMALL, here=here, lacks=WINDOWS), "fcntl", "Linux")
    assert refused(command("plan", "--measure", *SMALL, here=here, lacks=WINDOWS), "fcntl", "Linux")
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_the_book_is_made_of_records_without_locks_of_files_and_in_any_locale(here, called):
    assert called("run", "warm_start", "budget", *SMALL).returncode == 0
    arguments = ("book", *SMALL, "--chapters", "warm_start", "--out", "ö")
    done = command(*arguments, here=here, lacks=WINDOWS, **C_LOCALE)
    assert done.returncode == 0, done.stdout + done.stderr
    page = here / "ö/_build/html/book/chapters/01_warm_start.html"
    assert "has no results" not in page.read_text(encoding="utf-8")


# 14, 17: what there is to print on


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": name} for name in ("ascii", "latin-1", "cp1252", "utf-8")] + [C_LOCALE],
    ids=["ascii", "latin-1", "cp1252", "utf-8", "C"],
)
def test_a_terminal_gets_signs_that_it_has(here, environment):
    settings = {"REPRO_RESULTS": str(ROOT / "results")} | environment
    done = command("claims", "--profile", "cifar10", here=here, **settings)
    assert done.returncode == 0 and done.stderr == ""
    assert ("−1.88 (" if environment.get("PYTHONIOENCODING") == "utf-8" else "-1.88 (") in done.stdout
    done = command("run", "wärm_−_start", here=here, **settings)
    assert refused(done, "unknown study")
    assert refused(command("status", "--set", "dataset=Ж.npz", here=here, **settings), "there is no file")


def test_every_text_file_is_opened_in_utf_8():
    check = ["ruff", "check", "--preview", "--select", "PLW1514", "--no-cache", "repro"]
    done = subprocess.run([sys.executable, "-m", *check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "arguments", [["claims"], ["claims", "--json"], ["plan", *SMALL], ["--help"], ["data"]]
)
@pytest.mark.parametrize("shell", [f">{FULL}", ">&-"])
def test_output_that_cannot_be_had_is_one_line(here, arguments, shell):
    if not FULL.exists():
        pytest.skip("there is no /dev/full")
    assert refused(command(*arguments, here=here, shell=shell), "standard output", status=1)


def test_errors_that_cannot_be_told_keep_their_status(here):
    for shell in (f"2>{FULL}", "2>&-"):
        assert command("run", "warm_strat", here=here, shell=shell).returncode == 2
        assert command("status", here=here, shell=shell).returncode == 0
    done = command("claims", "--json", here=here, shell="| head -1")
    assert (done.stdout, done.stderr) == ("[\n", "")


def test_a_batch_of_any_size_gives_the_curves_that_a_network_has_alone(here, called):
    own = ("run", "warm_start", "--profile", "smoke", "--set", "batch_size=20", "--device", "cpu")
    for seeds in ("1", "3"):
        assert called(*own, "--seeds", seeds, REPRO_RESULTS=seeds).returncode == 0
    alone, among = ({p.name: json.loads(p.read_bytes()) for p in (here / n).rglob("*.json")} for n in "13")
    assert len(alone) == 2 and len(among) == 6
    assert {n: r["curves"] for n, r in alone.items()} == {n: among[n]["curves"] for n in alone}
    assert min(record["population"] for record in among.values()) > 1


# 15, 26: parameters of a chapter


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"seeds": "two"}, "seeds takes a whole number from 1, or None for those of the profile, not 'two'"),
        ({"seeds": 2.5}, "not 2.5"),
        ({"seeds": [2]}, r"not \[2\]"),
        ({"seeds": True}, "not True"),
        ({"seeds": "-1"}, "not '-1'"),
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"seeds": float("nan")}, "not nan"),
        ({"profile": None}, "unknown profile None: choose from smoke"),
        ({"profile": ["smoke"]}, r"unknown profile \['smoke'\]"),
        ({"profile": {"name": "smoke"}}, "unknown profile"),
        ({"device": None}, "unknown device None: choose from auto, cpu, cuda"),
        ({"device": ["cpu"]}, "unknown device"),
        ({"device": "nnoe"}, "unknown device 'nnoe'"),
        ({"settings": 3}, "unknown setting 3: write field=value"),
        ({"settings": [None]}, "unknown setting None"),
        ({"settings": {"width": 3}}, "unknown setting 'width'"),
        ({"settings": ["width=3,depth=1"]}, "width takes a whole number, not '3,depth=1'"),
        ({"settings": "width=3;depth=1"}, "width takes a whole number"),
        ({"name": ["warm_start"]}, "unknown study"),
        ({"name": None}, "unknown study 'None'"),
    ],
)
def test_a_parameter_that_says_nothing_is_one_line(parameters, words):
    with pytest.raises(InputError, match=words) as refusal:
        run_study(**{"name": "warm_start", "profile": "smoke"} | parameters)
    assert "\n" not in str(refusal.value)


def test_parameters_may_come_as_text_as_papermill_passes_them(tmp_path):
    for seeds in (2, 2.0, "2"):
        assert scale("smoke", seeds).seeds == 2
    assert (
        scale("smoke", None, None) == scale("smoke", None, "") == scale("smoke", None, []) == scale("smoke")
    )
    for settings in ("width=3, train=100,", "width=3,train=100", ["width=3", "train=100"]):
        chosen = scale("smoke", None, settings)
        assert (chosen.width, chosen.train) == (3, 100)
    own, fewer = images(tmp_path / "a,b.npz"), "train=all, test=all"
    comma = scale("smoke", None, f"dataset={own}, width=3, {fewer}")
    assert (comma.dataset, comma.width) == (str(own), 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", ["-r seeds two", "-p seeds two", "-p seeds 0", "-y seeds:[2]", "-y settings:{a:1}"]
)
def test_papermill_shows_the_line(tmp_path, monkeypatch, option):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    flag, _, words = option.partition(" ")
    value = words.split(" ") if flag != "-y" else [words.replace(":", ": ", 1)]
    chapter = ROOT / "book" / "chapters" / "01_warm_start.ipynb"
    call = [str(chapter), str(tmp_path / "out.ipynb"), "--cwd", str(tmp_path), "-p", "profile", "smoke"]
    done = CliRunner().invoke(papermill, [*call, flag, *value])
    found = json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))
    [error] = [o for c in found["cells"] for o in c.get("outputs", ()) if o["output_type"] == "error"]
    assert done.exit_code == 1 and error["ename"] == "InputError" and "\n" not in error["evalue"]
    assert not (tmp_path / "results").exists()
