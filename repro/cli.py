"""The command line: `repro COMMAND`, or `python -m repro COMMAND` from a plain checkout.

Exit codes: 0 done, 1 something failed, 2 bad input (one line, nothing
written), 3 stopped, by a signal or the time limit, with work left.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from repro.config import InputError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[STUDY]...", help="studies; all where none is named")
]
ProfileName = Annotated[str, typer.Option("--profile", help="smoke, quick, laptop, cifar10 or paper")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="change a field of the profile")
]
Seeds = Annotated[int | None, typer.Option("--seeds", help="how many; the profile's own by default")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        numeric = name.startswith("#")
        table.add_column(name.lstrip("#"), justify="right" if numeric else "left")
    return table


@app.command()
def studies(profile: ProfileName = "quick") -> None:
    """List the paper's questions: study, its figures in the paper, chapter, claims and runs."""
    from repro import profiles, scorecard
    from repro import studies as questions

    chosen = profiles.profile(profile)
    table = _table("study", "paper", "chapter", "claims", f"#runs ({profile})", "question")
    for study in questions.studies():
        named = ", ".join(c.id for c in scorecard.CLAIMS if c.study == study.name)
        runs = len({case.run.id for case in study.cases(chosen)})
        table.add_row(study.name, study.figures, study.chapter, named, str(runs), study.question)
    console.print(table)


@app.command()
def plan(
    names: Names = None,
    profile: ProfileName = "quick",
    settings: Settings = None,
    seeds: Seeds = None,
    speed: Annotated[
        float | None, typer.Option(help="training images per second, to turn the work into hours")
    ] = None,
) -> None:
    """Say what studies take: runs, epochs with and without sharing, and hours at a given speed."""
    from repro import plans, profiles
    from repro import studies as questions

    chosen, asked = profiles.profile(profile, settings or (), seeds), questions.studies(names or ())
    hours = () if speed is None else ("#hours",)
    table = _table("study", "#runs", "#epochs alone", "#epochs shared", "#steps", *hours)
    cases = {study.name: [case.run for case in study.cases(chosen)] for study in asked}
    every = [run for runs in cases.values() for run in runs]
    for name, runs in [*cases.items(), ("all together", every)]:
        made = plans.plan(runs)
        numbers = [len(made.wanted), made.epochs_alone, made.epochs, made.steps]
        cost = [] if speed is None else [f"{made.steps * chosen.batch_size / speed / 3600:,.1f}"]
        table.add_row(name, *(f"{n:,}" for n in numbers), *cost)
    console.print(table)


@app.command()
def run(
    names: Names = None,
    profile: ProfileName = "quick",
    settings: Settings = None,
    seeds: Seeds = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16")] = "auto",
    time_limit: Annotated[str | None, typer.Option(help="stop cleanly after this long: 90s, 9m, 2h")] = None,
) -> None:
    """Train what studies lack and record it; stopped at any time, the same command goes on."""
    from repro import profiles
    from repro import studies as questions

    chosen, asked = profiles.profile(profile, settings or (), seeds), questions.studies(names or ())
    _sweep(chosen, asked, device, precision, time_limit)


def _sweep(chosen, asked, device: str, precision: str = "auto", time_limit: str | None = None) -> None:
    from repro import plans, workers
    from repro.progress import shown
    from repro.records import Store

    limit, store = _seconds(time_limit), Store.of(chosen.name)
    made = plans.plan(case.run for study in asked for case in study.cases(chosen))
    with shown() as progress:
        outcome = workers.execute(
            made, store, device=device, precision=precision, time_limit=limit, progress=progress
        )
    console.print(f"{progress.recorded} of {progress.runs} runs recorded in {store.folder}")
    for failure in outcome.failures:
        print(f"repro: {failure}", file=sys.stderr)
    if not outcome.finished:
        console.print("stopped; the same command goes on from here")
    if outcome.failures or not outcome.finished:
        raise typer.Exit(1 if outcome.failures else 3)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise InputError(f"--time-limit takes a number with s, m or h, such as 9m, not {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


@app.command()
def status(
    names: Names = None, profile: ProfileName = "quick", settings: Settings = None, seeds: Seeds = None
) -> None:
    """Count the recorded runs of each study."""
    from repro import profiles
    from repro import studies as questions
    from repro.records import Store

    chosen, asked = profiles.profile(profile, settings or (), seeds), questions.studies(names or ())
    store = Store.of(chosen.name)
    there = store.ids()
    table = _table("study", "#recorded", "#of", "#missing")
    for study in asked:
        wanted = {case.run.id for case in study.cases(chosen)}
        done = len(wanted & there)
        table.add_row(study.name, str(done), str(len(wanted)), str(len(wanted) - done))
    console.print(table)
    console.print(f"{len(there)} records in {store.folder}")


@app.command()
def claims(
    profile: ProfileName = "quick",
    settings: Settings = None,
    seeds: Seeds = None,
    as_json: Annotated[bool, typer.Option("--json", help="a list of objects, for programs")] = False,
) -> None:
    """Judge every claim of the paper by the records of a profile."""
    from repro import profiles
    from repro.scorecard import scorecard

    found = list(scorecard(profiles.profile(profile, settings or (), seeds)).values())
    if as_json:
        sys.stdout.write(json.dumps([verdict.as_json() for verdict in found], indent=1) + "\n")
        return
    table = _table("claim", "verdict", "effect", "unit", "#p", "paper", "words")
    for v in found:
        p = "" if v.p != v.p else f"{v.p:.2g}"
        effect = str(v.effect) if v.effect.n else ""
        table.add_row(v.claim.id, v.verdict, effect, v.claim.unit, p, v.claim.figure, v.claim.words)
    console.print(table)


@app.command()
def book(
    profile: ProfileName = "quick",
    chapters: Annotated[str | None, typer.Option(help="names with commas between; all by default")] = None,
    settings: Settings = None,
    seeds: Seeds = None,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="folder for _build; that of the project by default")
    ] = None,
    jobs: Annotated[int, typer.Option(help="chapters executed at once")] = 2,
) -> None:
    """Train what the chapters lack, execute them, and render the book to OUT/_build/html."""
    from repro import book as pages
    from repro import profiles
    from repro import studies as questions

    pages.require_tools()
    chosen = profiles.profile(profile, settings or (), seeds)
    asked = [name.strip() for name in chapters.split(",")] if chapters else None
    stems = {path.stem for path in pages.select(pages.project_root(), asked)}
    parameters = {"seeds": seeds, "device": device, "settings": ", ".join(settings or ())}
    parameters = {name: value for name, value in parameters.items() if value not in (None, "")}
    for path in pages.select(pages.project_root(), asked):
        pages.check_parameters(path, {"profile": profile, **parameters})
    _sweep(chosen, [study for study in questions.studies() if study.chapter in stems], device)
    raise typer.Exit(pages.make_book(profile, asked, parameters, out, jobs))


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="cifar10, cifar100 or svhn")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="take it from this .npz file instead of downloading")
    ] = None,
) -> None:
    """List the data sets, or fetch one: by download, or from a copy in an .npz file."""
    from repro import data as sets
    from repro import downloads

    if name is not None:
        found = downloads.import_npz(name, source) if source else downloads.download(name)
        console.print(f"{name}: {len(found.y_train):,} training and {len(found.y_test):,} test images")
    table = _table("data set", "state", "#training", "#test", "fingerprint", "file")
    for row in sets.describe():
        counts = [f"{row[split]:,}" for split in ("train", "test")]
        table.add_row(row["name"], row["state"], *counts, row["fingerprint"] or "", row["path"] or "")
    console.print(table)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit; a mistake of the user is one line on standard error and exit code 2."""
    warnings.showwarning = lambda message, *_, **__: print(f"repro: {message}", file=sys.stderr)
    try:
        status = app(arguments, prog_name="repro", standalone_mode=False)
    except InputError as error:
        status = _refused(str(error))
    except KeyboardInterrupt:
        status = 130
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's own mistakes of usage have it
            raise
        status = _refused(f"{error.format_message()} See repro --help.")
    sys.exit(status or 0)


def _refused(message: str) -> int:
    print(f"repro: {' '.join(message.split())}", file=sys.stderr)
    return 2
