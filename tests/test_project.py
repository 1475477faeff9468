"""What holds the repository's own files together."""

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required():
    extras = PROJECT["optional-dependencies"]
    return {r.replace(" ", "") for r in [*PROJECT["dependencies"], *extras["book"], *extras["test"]]}


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower()


def test_conda_environment_asks_for_what_the_package_asks_for():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {re.sub(r"^pytorch", "torch", item) for item in listed if isinstance(item, str)}
    assert f"python{PROJECT['requires-python']}" in conda
    assert conda - {f"python{PROJECT['requires-python']}", "pip", "setuptools>=77"} == required()


def test_lock_pins_every_requirement_to_one_version_and_names_no_index():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert all(re.match(r"^[A-Za-z0-9_.\[\]-]+==[^\s;]+( ; .+)?$", line) for line in lines if line)
    assert {name_of(r) for r in required()} <= {name_of(line) for line in lines}


@pytest.mark.parametrize(
    "module",
    ["store.records", "figures.common", "questions", "scorecard", "book.explorer", "book.execution", "cli"],
)
def test_light_modules_leave_torch_alone(module):
    code = f"import sys, repro.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


SLOW = {"torch", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "nbformat", "papermill"}


@pytest.mark.parametrize("command", ["--help", "status", "plan", "studies", "claims", "data"])
def test_a_command_imports_nothing_slow_that_it_can_do_without(command, tmp_path):
    """Nothing is recorded: what is, `claims` judges with pandas and scipy."""
    code = (
        "import sys\nfrom repro.cli import main\ntry:\n    main(sys.argv[1:])\n"
        f"finally:\n    print(*({SLOW!r} & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, command],
        cwd=ROOT,
        env=os.environ | {"REPRO_RESULTS": str(tmp_path), "REPRO_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0
    assert set(run.stderr.split()) == ({"numpy"} if command in ("claims", "data") else set())


def test_command_line_works_from_a_plain_checkout_without_the_tools_of_the_book(tmp_path):
    """As on a cluster: papermill, ipywidgets and Jupyter Book cannot be imported, repro is not installed."""
    blocked = "papermill", "ipywidgets", "jupyter_book", "nbformat", "IPython", "myst_nb"
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from repro.cli import main\ntry:\n    main(sys.argv[1:])\n"
        f"finally:\n    print('slow:', *filter(sys.modules.get, {SLOW | {'torch._dynamo'}!r}))"
    )
    command = "run", "warm_start", "--profile", "smoke", "--seeds", "1", "--device", "cpu"
    run = subprocess.run(
        [sys.executable, "-c", code, *command],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "REPRO_RESULTS": str(tmp_path),
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "smoke").glob("*.json"))) == 2
    slow = run.stdout.rpartition("slow:")[2].split()
    assert set(slow) <= {"torch", "numpy"}, "training begins later by what this takes to import"


def test_each_row_of_what_survives_what_names_a_test_that_there_is():
    page = (ROOT / "book" / "cluster.md").read_text()
    table = page[page.index("| what happens") :].split("\n\n")[0]
    named = re.findall(r"^1\. `(test_\w+)`$", page, re.MULTILINE)
    there = {
        name for path in ROOT.glob("tests/*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert set(named) <= there and len(named) == len(table.splitlines()) - 2


def imported(statements, modules):
    """The modules, of these, that the statements import, those for type checkers included."""
    for statement in statements:
        if isinstance(statement, ast.ImportFrom):
            names = {f"{statement.module}.{alias.name}" for alias in statement.names} & modules
            yield from names or {statement.module} & modules
        elif isinstance(statement, ast.If | ast.Try):
            yield from imported(statement.body, modules)


def test_no_chain_of_imports_is_longer_than_ten_modules():
    """Those within functions do not count: they wait until they are needed."""
    paths = {path.relative_to(ROOT).with_suffix("").parts: path for path in ROOT.glob("repro/**/*.py")}
    paths = {".".join(parts).removesuffix(".__init__"): path for parts, path in paths.items()}
    modules = paths.keys() - {"repro"}
    below = {name: set(imported(ast.parse(paths[name].read_text()).body, modules)) for name in modules}
    # This one imports all files of its folder.
    below["repro.questions"] |= {name for name in modules if name.startswith("repro.questions.")}

    @functools.cache
    def floor(name):
        return 1 + max(map(floor, below[name]), default=0)

    assert max(map(floor, modules)) <= 10
    assert floor("repro.sweep.dispatch") > floor("repro.sweep.plans") > floor("repro.config") == 1
