"""What one waits for before anything is trained: `python -m benchmarks.waits [--against DIR]`.

Times here, and in another checkout if DIR names one, taking turns: the commands
that train nothing, `repro run` until its first step, a chapter all of whose runs
are recorded, and `make book` again without changes. The best of some turns counts,
of the time and of the processor time by itself: the one that other work on the
machine changes less. Records are those of this checkout's `results/laptop`.
Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from repro.cli import STOPPED
from repro.store.records import ROOT

PROFILE = "laptop"
COMMANDS = ("--help", "status", "plan", "studies", "claims", "data", "results verify")
# Tells when the first epoch is trained, of one step, and stops; children train, as so many epochs follow.
FIRST_STEP = """
import contextlib, os, signal, time
from repro import cli
from repro.sweep import progress

def show(now):
    if now.steps_done:
        print(time.time(), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

@contextlib.contextmanager
def told():
    yield progress.Progress(show=show)

progress.shown = told
sizes = "train=64", "test=64", "batch_size=32", "pretraining_epochs=200", "tuning_epochs=200"
cli.main(["run", "warm_start", "--device=cpu", *(f"--set={size}" for size in sizes)])
"""
CHAPTER = """
import sys
from pathlib import Path
from repro.book import execution
parameters = {"profile": sys.argv[1], "device": "none"}
[found] = execution.execute([Path("book/chapters/07_reset.ipynb").absolute()], parameters, Path(sys.argv[2]))
sys.exit(found.error)
"""


def waits(out: Path, chapters: list[str]) -> dict[str, tuple[float, list[str]]]:
    """What to time: seconds that it may take, and the arguments of Python."""
    found = {"import repro": (0.4, ["-c", "import repro"])}
    for command in COMMANDS:
        named = {"--help": [], "data": [], "studies": [], "results verify": [PROFILE]}
        options = named.get(command, ["--profile", PROFILE])
        found[f"repro {command}"] = (0.4, ["-m", "repro", *command.split(), *options])
    found["repro run, until the first step"] = (2.0, ["-c", FIRST_STEP])
    found["a recorded chapter"] = (3.0, ["-c", CHAPTER, PROFILE, str(out / "chapter")])
    book = ["-m", "repro", "book", "--profile", PROFILE, "--out", str(out), *chapters]
    found["make book, again"] = (1.0, book)
    return found


def seconds(checkout: Path, arguments: list[str]) -> tuple[float, float]:
    """How long a command took, and the processor time of all its processes; raises where it failed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # as for a user
    trains = FIRST_STEP in arguments
    with tempfile.TemporaryDirectory() as folder:
        environment["REPRO_RESULTS"] = folder if trains else str(ROOT / "results")
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
        call = [sys.executable, *arguments]
        done = subprocess.run(call, cwd=checkout, env=environment, capture_output=True, text=True)
        end, after = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != (STOPPED if trains else 0):
        raise RuntimeError(f"{checkout}: {arguments}: {(done.stdout + done.stderr)[-2000:]}")
    wall = (float(done.stdout.split()[0]) if trains else end) - start
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout, timed in the first column")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", default="", help="part of the name of what to time")
    parser.add_argument("--chapters", help="of the book that is made again; all by default")
    asked = parser.parse_args()
    chapters = ["--chapters", asked.chapters] if asked.chapters else []
    checkouts = [*filter(None, [asked.against]), ROOT]
    print(f"Seconds (of them processor time), best of {asked.turns}; {os.cpu_count()} cores, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}\n\n| wait | goal | {' | '.join(path.name for path in checkouts)} |")
    print("|---|---|" + "---|" * len(checkouts))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        outs = [waits(Path(folder, str(i)), chapters) for i in range(len(checkouts))]
        for name, (goal, _) in outs[0].items():
            if asked.only not in name:
                continue
            best, calls = [], [(path, out[name][1]) for path, out in zip(checkouts, outs, strict=True)]
            # A turn more than asked for: the first makes the book, and Python's bytecode.
            turns = [[seconds(*call) for call in calls] for _ in range(asked.turns + 1)]
            for times in zip(*turns[1:], strict=True):
                wall, processor = map(min, zip(*times, strict=True))
                best.append(f"{wall:.2f} ({processor:.2f})")
            print(f"| {name} | {goal:g} | {' | '.join(best)} |", flush=True)
    print(f"\nLoad at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
