"""The command line: `repro COMMAND`, or `python -m repro COMMAND` from a plain checkout.

Exit codes: 0 done, 1 something failed, 2 bad input (one line, nothing
written), 3 stopped, by a signal or the time limit, with work left.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from repro import profiles, questions, scorecard, terminal
from repro.config import InputError, check_engine, given
from repro.data import datasets, downloads
from repro.scales import PUBLISHED
from repro.store import audit
from repro.store.records import ROOT, Store
from repro.study import only as chosen_cases
from repro.sweep import costs, plans, progress

STOPPED = 3  # exit code
OF_PATHS = ("REPRO_RESULTS", "REPRO_DATA", "PYTHONPATH")  # environment variables that hold paths
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
published = typer.Typer(no_args_is_help=True, help="Check recorded results.")
app.add_typer(published, name="results")

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[STUDY]...", help="studies, or a file with your own; all by default"),
]
ProfileName = Annotated[
    str, typer.Option("--profile", help="smoke, quick, cifar10-small, cifar10, paper, ...")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="change a field of the profile")
]
Seeds = Annotated[int | None, typer.Option("--seeds", help="number of seeds; the profile's by default")]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="FACTOR=VALUE", help="runs with this value of a factor, and fresh ones"),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        numeric = name.startswith("#")  # marks a column of numbers; not shown
        table.add_column(name.lstrip("#"), justify="right" if numeric else "left")
    return table


@app.command()
def studies(profile: ProfileName = "quick") -> None:
    """List the paper's questions: study, its figures in the paper, chapter, claims and runs."""
    chosen = profiles.profile(profile)
    table = _table("study", "paper", "chapter", "claims", f"#runs ({profile})", "question")
    for study in questions.studies():
        named = ", ".join(c.id for c in questions.CLAIMS if c.study == study.name)
        runs = len({case.run.id for case in study.cases(chosen)})
        table.add_row(study.name, study.figures, study.chapter, named, str(runs), study.question)
    terminal.show(table)


@app.command()
def plan(
    names: Names = None,
    profile: ProfileName = "quick",
    settings: Settings = None,
    seeds: Seeds = None,
    speed: Annotated[float | None, typer.Option(help="training images per second, to estimate hours")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="train each network for some seconds, to estimate hours here")
    ] = False,
    gpus: Annotated[
        str | None, typer.Option(help="numbers of GPUs to plan for, such as 1,8,64, each at that speed")
    ] = None,
    price: Annotated[float | None, typer.Option(help="price of one GPU-hour, in any currency")] = None,
) -> None:
    """Show what studies cost: runs, epochs with and without shared stages, and hours at a known speed."""
    known = speed is not None
    if known and measure:
        raise InputError("--speed is given or found by --measure: choose one of them")
    if known and not 0 < speed < math.inf:
        raise InputError(f"--speed takes a number above 0, not {speed}")
    if gpus is not None and not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", gpus):
        raise InputError(f"--gpus takes numbers below a million such as 1,8,64, not {gpus!r}")
    if gpus is not None and not (known or measure):
        raise InputError("--gpus needs a --speed above 0 or --measure")
    if price is not None and not (gpus is not None and 0 < price < math.inf):
        raise InputError(f"--price takes a number above 0, not {price}, and needs --gpus")
    chosen, asked = profiles.profile(profile, settings or (), seeds), questions.studies(names or ())
    profiles.module_numbers(chosen)  # raises `InputError` if a user-supplied network fails
    hours = ("#hours",) if known or measure else ()
    table = _table("study", "#runs", "#epochs alone", "#epochs shared", "#steps", *hours)
    cases = {study.name: [case.run for case in study.cases(chosen)] for study in asked}
    every = [run for runs in cases.values() for run in runs]
    slots, seconds = 1, lambda run: run.batch_size / (speed or 1)
    if measure:
        from repro.sweep import calibration  # PyTorch takes seconds to import

        slots = calibration.engine().slots
        seconds = calibration.seconds_per_step(every, Store.of(chosen.name))
        print(f"hours on this machine, {slots} process{'es' * (slots > 1)} at once")

    for name, runs in [*cases.items(), ("all together", every)]:
        made = plans.plan(runs)
        numbers = [len(made.wanted), made.epochs_alone, made.epochs, made.steps]
        cost = [f"{costs.forecast(made, seconds, slots).hours:,.1f}" for _ in hours]
        table.add_row(name, *(f"{n:,}" for n in numbers), *cost)
    terminal.show(table)
    if gpus is None:
        return
    table = _table("#GPUs", "#hours", "#GPU-hours", *(("#cost",) if price else ()), "#storage")
    for number in map(int, gpus.split(",")):
        f = costs.forecast(made, seconds, number)
        cost = [f"{price * f.gpu_hours:,.0f}"] if price else []
        numbers = [str(number), f"{f.hours:,.1f}", f"{f.gpu_hours:,.1f}"]
        table.add_row(*numbers, *cost, f"{f.bytes / 1e9:,.2f} GB")
    terminal.show(table)


@app.command()
def run(
    names: Names = None,
    profile: ProfileName = "quick",
    settings: Settings = None,
    seeds: Seeds = None,
    only: Only = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bf16")] = "auto",
    time_limit: Annotated[str | None, typer.Option(help="stop cleanly after this long: 90s, 9m, 2h")] = None,
    on: Annotated[
        str | None,
        typer.Option(metavar="CLUSTER", help="train on slurm, or a Dask scheduler: tcp://host:8786"),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="most SLURM jobs at once; 8 by default")] = None,
) -> None:
    """Train the missing runs of studies, most important first; if stopped, the same command resumes.

    Without names, train all studies.
    """
    chosen, asked = profiles.profile(profile, settings or (), seeds), questions.studies(names or ())
    if wrong := [item for item in only or () if "=" not in item]:
        raise InputError(f"--only takes FACTOR=VALUE, such as modules=456, not {wrong[0]!r}")
    factors = dict(item.split("=", 1) for item in only or ())
    cases = (case for study in asked for case in chosen_cases(study, study.cases(chosen), factors))
    runs = questions.by_priority(cases)
    limit = _seconds(time_limit)
    if jobs is not None and on != "slurm":
        raise InputError("--jobs is for jobs of SLURM: it needs --on slurm")
    if status := _sweep(chosen, runs, device, precision=precision, time_limit=limit, on=on, jobs=jobs):
        raise typer.Exit(status)


def _sweep(
    chosen, runs, device: str, on: str | None = None, jobs: int | None = None, **settings: object
) -> int:
    """Train those of the runs that are not recorded, here or on a cluster; return the exit status."""
    from repro.sweep import cluster, dispatch  # this import takes a fifth of a command's start

    store, place = Store.of(chosen.name), None if on is None else cluster.place(on, jobs)
    with progress.shown() as shown:
        made = plans.plan(runs)
        outcome = dispatch.execute(made, store, device=device, progress=shown, place=place, **settings)
    print(f"{shown.recorded} of {shown.runs} runs recorded in {store.folder}")
    for line in outcome.failures:
        _say(line)
    if not outcome.finished:
        print("stopped; the same command resumes from here")
    return 1 if outcome.failures else 0 if outcome.finished else STOPPED


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text):
        return float(match[1]) * {"m": 60, "h": 3600}.get(match[2], 1)
    raise InputError(f"--time-limit takes a number with s, m or h, such as 9m, not {text!r}")


@app.command()
def status(
    names: Names = None, profile: ProfileName = "quick", settings: Settings = None, seeds: Seeds = None
) -> None:
    """Count the recorded runs of each study."""
    _count(profiles.profile(profile, settings or (), seeds), questions.studies(names or ()))


def _count(chosen, asked) -> None:
    store = Store.of(chosen.name)
    there = store.ids()
    table = _table("study", "#recorded", "#of", "#missing")
    for study in asked:
        wanted = {case.run.id for case in study.cases(chosen)}
        done = len(wanted & there)
        table.add_row(study.name, str(done), str(len(wanted)), str(len(wanted) - done))
    terminal.show(table)
    print(f"{len(there)} records in {store.folder}")


@app.command()
def claims(
    question: Annotated[
        str | None, typer.Argument(help="a file with your own question; the paper's claims by default")
    ] = None,
    profile: ProfileName = "quick",
    settings: Settings = None,
    seeds: Seeds = None,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, for programs")] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="compare with other results: a folder of profiles, or published"),
    ] = None,
) -> None:
    """Judge every claim of the paper, or of a question in a file, by the records of a profile.

    With --profile published, as in the book, each claim is judged by the largest scale that decides it.
    """
    whole = profile == PUBLISHED
    if whole and (question or settings or seeds or against):
        raise InputError("--profile published takes no question, --set, --seeds or --against")
    chosen = None if whole else profiles.profile(profile, settings or (), seeds)
    if against is not None:
        if question or as_json:
            raise InputError("--against compares the paper's claims, in a table: leave the rest out")
        folder = ROOT / "results" if against == "published" else given(against)
        table = _table("claim", "here", "there", "#difference", "#tolerance", "unit", "agree")
        for row in scorecard.against(chosen, folder / chosen.name).itertuples(index=False):
            table.add_row(*(f"{value:.2f}" if isinstance(value, float) else value for value in row))
        terminal.show(table)
        return
    found = list((scorecard.best() if whole else scorecard.scorecard(chosen, question)).values())
    if as_json:
        sys.stdout.write(json.dumps([verdict.as_json() for verdict in found], indent=1) + "\n")
        return
    table = _table("claim", "verdict", "scale", "effect", "unit", "#p", "paper", "words")
    for v in found:
        effect = v.effect.text(2) if v.effect.n else ""
        told = v.claim.id, v.verdict, v.profile, effect, v.claim.unit, v.p_text, v.claim.figure, v.claim.words
        table.add_row(*told)
    terminal.show(table)


@app.command()
def book(
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="train its missing runs; published records by default"),
    ] = None,
    chapters: Annotated[str | None, typer.Option(help="names, separated by commas; all by default")] = None,
    settings: Settings = None,
    seeds: Seeds = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda or none (no training); auto by default, none for downloaded data"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for _build; the project's by default")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="chapters executed at once")] = 2,
    pdf: Annotated[bool, typer.Option("--pdf", help="also a PDF of each chapter; needs Chromium")] = False,
) -> None:
    """Execute the chapters and render the book to OUT/_build/html.

    Without a profile, chapters show published records and train little. With one, their missing runs are
    trained first; for downloaded data, which take hours, the default is to show only what is recorded.
    `--set seeds=N` means `--seeds N`, because chapters have one parameter for the seeds of all studies.
    """
    from repro.book import execution as pages  # this import takes a fifth of a command's start

    pages.require_tools()
    if device not in (None, "none"):
        check_engine(device, "auto")
    asked = [name.strip() for name in chapters.split(",")] if chapters is not None else None
    if profile is None:
        if settings or seeds is not None:
            raise InputError("--set and --seeds need a --profile: published records are as they are")
        parameters = {} if device is None else {"device": device}
        raise typer.Exit(pages.make_book(None, asked, parameters, out, jobs, pdf=pdf))
    fields = [item for item in settings or () if not re.match(r"\s*seeds\s*=", item)]
    if seeds is None and len(fields) < len(settings or ()):
        seeds = profiles.profile(profile, settings or ()).seeds
    chosen = profiles.profile(profile, fields, seeds)
    device = ("none" if chosen.dataset in downloads.SOURCES else "auto") if device is None else device
    changed = profiles.changes(profiles.profile(profile, fields))
    parameters = {"seeds": seeds, "device": device, "settings": changed}
    parameters = {name: value for name, value in parameters.items() if value not in (None, [])}
    named = pages.check(asked, {"profile": profile} | parameters, out, jobs, pdf=pdf)
    stems = {path.stem for path in named}
    asked_of, status = [study for study in questions.studies() if study.chapter in stems], 0
    if device == "none":
        _count(chosen, asked_of)
    else:
        status = _sweep(chosen, [case.run for study in asked_of for case in study.cases(chosen)], device)
    if status != STOPPED:  # after failed runs too: a chapter that lacks one fails alone
        status = max(status, pages.make_book(profile, asked, parameters, out, jobs, pdf=pdf))
    raise typer.Exit(status)


@published.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[PROFILE]...", help="all by default")] = None,
) -> None:
    """Check every recorded result, and show which devices and commits made them."""
    wrong = False
    for folder in audit.folders(names or []):
        rows, problems = audit.verify(folder)
        table = _table(*(f"#{c}" if c in ("records", "hours") else c for c in audit.Made._fields))
        for made in audit.summary(rows):
            table.add_row(*map(str, made))
        print(f"{folder}: {len(rows)} sound records, {len(problems)} problems")
        terminal.show(table)
        for problem in problems:
            _say(problem)
        wrong = wrong or bool(problems)
    raise typer.Exit(int(wrong))


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="cifar10, cifar100 or svhn")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="take it from this .npz file instead of downloading")
    ] = None,
) -> None:
    """List the data sets, or fetch one: by download, or from a copy in an .npz file."""
    if name is None and source is not None:
        raise InputError(f"--from needs the name of a data set: {', '.join(downloads.SOURCES)}")
    if name is not None:
        found = downloads.import_npz(name, source) if source else downloads.download(name)
        print(f"{name}: {len(found.y_train):,} training and {len(found.y_test):,} test images")
    table = _table("data set", "state", "#training", "#test", "fingerprint", "file")
    for row in datasets.describe():
        counts = [f"{row[split]:,}" for split in ("train", "test")]
        table.add_row(row["name"], row["state"], *counts, row["fingerprint"] or "", row["path"] or "")
    terminal.show(table)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit; on a user's mistake, with one line on standard error and exit code 2."""
    warnings.showwarning = lambda message, *_, **__: _say(str(message))
    if sys.stdout is None:  # child processes would take the next file we open for it
        sys.exit(_say("standard output is closed: /dev/null throws away what is printed", 1))
    terminal.prepare()
    try:
        _fix_environment()
        status = app(arguments, prog_name="repro", standalone_mode=False)
    except InputError as error:
        status = _say(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except ModuleNotFoundError as error:
        if (error.name or "repro").startswith("repro"):
            raise
        status = _say(f"this needs the module {error.name}, which this Python does not have", 2)
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        status = 1
    except OSError as error:  # not a bug: the disk is full, a folder is gone
        status = _say(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # as the errors of typer for wrong usage do
            raise
        status = _say(f"{error.format_message()} See repro --help.", 2)
    try:
        terminal.flush()
    except OSError as error:
        status = status or _say(f"standard output: {error.strerror}", 1)
    if arguments is None:  # run as a program: all is written, and an orderly shutdown takes time
        os._exit(status or 0)
    sys.exit(status or 0)


def _fix_environment() -> None:
    """Make the paths in environment variables absolute, for this process and those that it starts."""
    for name in OF_PATHS:
        if paths := os.environ.get(name):
            parts = paths.split(os.pathsep) if name == "PYTHONPATH" else [paths]
            os.environ[name] = os.pathsep.join(str(given(part)) for part in parts)


def _say(message: str, status: int = 0) -> int:
    """Print a message as one line on standard error, if that is open, and return `status`."""
    try:
        print(f"repro: {' '.join(message.split())}", file=sys.stderr or io.StringIO(), flush=True)
    except OSError:
        sys.stderr = None  # else Python flushes it again at exit, and changes the status
    return status
