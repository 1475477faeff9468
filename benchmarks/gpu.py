"""All that a GPU has to show, in one command: `python -m benchmarks.gpu --minutes 8 --out DIR`.

Its parts are the tests, the checks, the table of speeds, the tests that wait for a compiler, and training
the runs that say most, in the populations that were fastest; each runs in processes of its own for a time of
its own. What is found is printed and kept in DIR as it comes: `gpu.json`, a log of each part,
`records.tar.gz`. Without a GPU the
same happens at toy size. A later call on the same machine goes on with figures and records of earlier
ones; elsewhere, `--figures` names the `gpu.json` whose table is to say how `train` trains.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from repro import profiles
from repro.config import Run
from repro.questions import studies
from repro.store import files
from repro.store.records import ROOT, Store
from repro.sweep import layouts
from repro.sweep.plans import Layout

# Seconds; of `train` a weight.
LIMITS = {"tests": 45.0, "checks": 90.0, "table": 110.0, "compiled": 45.0, "train": 150.0}
PATIENCE = 60.0  # seconds without a finding, after which a process is taken to hang
PACK, TELL = 15.0, 20.0  # seconds between two archives of the records, and two lines on them
LEAVE = 20.0  # seconds before its end at which training is asked to stop, and keep where it is
NEAR = 0.95  # of the highest speed is as good, where it takes fewer members
LOG = 8 * 2**20  # bytes of a log that are kept
PLAIN = ({"way": "float32"}, {"way": "bf16"}, {"way": "bf16", "compiled": True})
TESTS = "tests/test_gpu.py"
FEW_THREADS = {"TORCHINDUCTOR_COMPILE_THREADS": "4"}  # where several processes compile at the same time
KINDLY = ("nice", "-n", "10")  # what compiles ahead leaves the cores to tests and checks


class Bench:
    """Where findings go, and until when there is time for more."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.deadline = time.monotonic() + 60 * options.minutes
        for folder in (self.out, options.results):
            folder.mkdir(parents=True, exist_ok=True)
        self.figures: dict = {}  # with those of an earlier call, if there are any
        for path in (options.figures, options.results / "gpu.json", self.out / "gpu.json"):
            if path is not None and path.exists():
                self.figures |= json.loads(path.read_bytes())
        self.compilers: list[tuple[subprocess.Popen, Path, list[dict]]] = []

    def keep(self) -> None:
        for folder in (self.out, self.options.results):  # that of results is there in a later call, too
            files.replace(folder / "gpu.json", (json.dumps(self.figures, indent=1) + "\n").encode())

    def check(self, name: str, found: dict) -> None:
        self.figures.setdefault("checks", {})[name] = found
        self.keep()
        words = ", ".join(f"{k} {v}" for k, v in found.items() if k != "longest")
        say(f"{name}: {words}")

    def log(self, part: str) -> Path:
        return self.out / f"{part}.log"


def say(text: str) -> None:
    print(text[:400], flush=True)


def task(name: str, **settings: object) -> list[str]:
    return tasks({name: settings})


def tasks(named: dict[str, dict]) -> list[str]:
    """The command that does these tasks one after another in one process."""
    return [sys.executable, "-m", "benchmarks.gpu_tasks", json.dumps(named)]


def started(command: list[str], out: int | io.IOBase, log: io.IOBase, **environment: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONUNBUFFERED": "1", "TORCH_LOGS": "recompiles"} | environment
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True
    )


def end(process: subprocess.Popen) -> None:
    """End a process and its children: kindly, and after five seconds in any case."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


@contextlib.contextmanager
def listening(
    commands: dict[str, list[str]], log: Path, until: float, **environment: str
) -> Iterator[Iterator[tuple[str, dict | str | int | None]]]:
    """What processes that run at the same time say: (name, a finding, a line, or at its end its status).

    After each second of silence comes ("", None). All of them are ended with the block, and nothing more
    comes after `until`. Lines are logged.
    """
    said: queue.Queue = queue.Queue()
    with log.open("ab") as errors:
        running = {n: started(c, subprocess.PIPE, errors, **environment) for n, c in commands.items()}

        def read(name: str, process: subprocess.Popen) -> None:
            for line in process.stdout:
                text = line.decode(errors="replace").rstrip()
                with contextlib.suppress(ValueError):
                    if text.startswith("{"):
                        said.put((name, json.loads(text)))
                        continue
                errors.write(line)
                errors.flush()
                said.put((name, text))
            said.put((name, process.wait()))

        def lines() -> Iterator[tuple[str, dict | str | int | None]]:
            left = len(running)
            while left and (rest := until - time.monotonic()) > 0:
                try:
                    name, what = said.get(timeout=min(1.0, rest))
                except queue.Empty:
                    name, what = "", None
                left -= isinstance(what, int)
                yield name, what

        readers = [threading.Thread(target=read, args=item, daemon=True) for item in running.items()]
        for reader in readers:
            reader.start()
        try:
            yield lines()
        finally:
            for process in running.values():
                end(process)
            for reader in readers:
                reader.join(1)
    if log.stat().st_size > LOG:
        log.write_bytes(log.read_bytes()[-LOG:])


def last_lines(log: Path) -> str:
    """The end of a log, in one line."""
    return " | ".join(log.read_text(errors="replace").split("\n")[-4:])[-300:] if log.exists() else ""


# ---- the parts ----


def machine(bench: Bench) -> None:
    with listening({"": task("machine")}, bench.log("table"), time.monotonic() + 90) as lines:
        for _, what in lines:
            if isinstance(what, dict):
                bench.figures["machine"] = what | {"day": datetime.now(UTC).date().isoformat()}
                bench.keep()
                say(f"{what['device']}, {what['versions']}, {what['matrix_rate'] / 1e12:,.2f} TFLOP/s")
                return
    raise SystemExit(f"the machine could not be asked: {last_lines(bench.log('table'))}")


def tests(bench: Bench, until: float, name: str = "tests", which: str = "not compiled") -> str:
    counts, found = Counter(), {}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--durations=5", TESTS]
    command += ["-k", which]
    with listening({"": command}, bench.log("tests"), until, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1") as lines:
        for _, what in lines:
            if isinstance(what, str):
                if outcome := re.search(r"::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)", what):
                    counts[outcome[1].lower()] += 1
                if re.match(r"(FAILED|ERROR) ", what) and len(found) < 12:
                    found[f"failure {len(found) + 1}"] = what[:300]
                if re.fullmatch(r"=+ .* in [\d.]+s.* =+", what):
                    found["summary"] = what.strip("= ")
            elif isinstance(what, int):
                found["status"] = what
    bench.check(name, {**counts, **found})
    return "done" if found.get("status") == 0 else "time is up" if "status" not in found else "failed"


def compiled_tests(bench: Bench, until: float) -> str:
    """Those that take a compiler half a minute; by then the figures are there."""
    return tests(bench, until, "compiled tests", "compiled")


def checks(bench: Bench, until: float) -> str:
    cuda, (narrow, _) = bench.figures["machine"]["cuda"], _widths(bench)
    specs = [spec for spec in _specs(bench)[-1] if cuda or spec["width"] == narrow]
    with tempfile.TemporaryDirectory(prefix="repro-cache-") as folder:
        at_once = {
            f"repeats {copy}{', compiled' * compiled}": task(
                "repeats", compiled=compiled, copy=copy, cache=f"{folder}/{copy}"
            )
            for compiled in (False, True)[: 1 + cuda]
            for copy in "ab"
        }
        alone = {"profiled": {"specs": specs}, "test_rates": {}}
        if cuda:
            at_once |= {name: task(name) for name in ("graphs", "short_of_memory")}
        else:
            alone |= {"graphs": {}, "short_of_memory": {}}
        share = time.monotonic() + 0.6 * (until - time.monotonic())
        ended = _asked(bench, at_once, share, **FEW_THREADS)
    return "done" if _asked(bench, {", ".join(alone): tasks(alone)}, until) and ended else "time is up"


def _asked(bench: Bench, commands: dict[str, list[str]], until: float, **environment: str) -> bool:
    """Keep what processes that run at the same time find; whether all came to an end, of whatever kind."""
    left, log = set(commands), bench.log("checks")
    with listening(commands, log, until, **environment) as lines:
        for name, what in lines:
            if isinstance(what, dict) and what["check"] == "bits":
                _compare(bench, what)
            elif isinstance(what, dict):
                bench.check(what.pop("check"), what)
            elif isinstance(what, int):
                left.discard(name)
                if what:
                    bench.check(name, {"failed": f"status {what}: {last_lines(log)}"})
    for name in left:
        bench.check(name, {"failed": "time is up"})
    return not left


def _compare(bench: Bench, bits: dict) -> None:
    known, way = bench.figures.setdefault("bits", {}), bits["way"] + ", compiled" * bits["compiled"]
    known[f"{way}, {bits['name']}, {bits['copy']}"] = bits
    name, same = f"same bits, {way}", same_bits(known)[way]
    if same != bench.figures.get("checks", {}).get(name, {}):
        bench.check(name, same)


def same_bits(bits: dict[str, dict]) -> dict[str, dict[str, bool]]:
    """Of each way to train, whether its curves have the bits of what else, as far as both are known."""
    found = {}
    for way in dict.fromkeys(name.rsplit(", ", 2)[0] for name in bits):
        first, compiled = f"{way}, whole, a", ", compiled" * way.endswith("compiled")
        others = {
            "twice": f"{way}, whole, b",
            "resumed": f"{way}, resumed, a",
            "as alone": f"alone{compiled}, whole, a",
            "as eager": f"{way.removesuffix(compiled)}, whole, a",
        }
        found[way] = {
            name: bits[first]["digest"] == bits[other]["digest"]
            for name, other in others.items()
            if other != first and {first, other} <= bits.keys()
        }
    return found


def _widths(bench: Bench) -> tuple[int, int]:
    return (16, 64) if bench.figures["machine"]["cuda"] else (4, 8)


def _specs(bench: Bench) -> list[list[dict]]:
    """What the table measures, what says most first, by process; last, what is compiled and profiled."""
    cuda, (narrow, wide) = bench.figures["machine"]["cuda"], _widths(bench)

    def ours(width: int, members: int, **way: object) -> dict:
        spec = {"way": "ours", "width": width, "members": members, "grouped": False, **way}
        spec["name"] = (
            f"w{width} P={members} {'grouped' if spec['grouped'] else 'streams'}"
            f"{', compiled' * ('compiled' in spec)}{', free' * ('free' in spec)}"
        )
        return spec

    grouped, fast = {"grouped": True}, {"compiled": True}
    ways = (grouped, {})
    many, few = ((20, 10), (3, 6, 1, 2)) if cuda else ((2,), (2, 1))
    plain = [
        {"width": width, "members": 1, **way, "name": f"w{width} {plain_name(way)}"}
        for width in (narrow, wide)
        for way in PLAIN
    ]
    best_wide = [ours(wide, n, **fast, tests=True) for n in few]
    best = [ours(narrow, n, **way, **fast, tests=True) for way in ways for n in many]
    eager = [ours(narrow, n, **way, tests=True) for n in many for way in ways]
    eager_wide = [ours(wide, n, tests=True) for n in few]
    large = [ours(narrow, 2 * many[0], **grouped, **fast)]
    free = [ours(narrow, many[0], **way, **fast, free=True) for way in ways]
    more = [
        ours(narrow, n, **way, **kind) for kind in (fast, {}) for n, way in ((5, grouped), (5, {}), (1, {}))
    ]
    same = [*eager[:2], eager_wide[0]]  # as compiled above
    last = [*eager[2:], *eager_wide[1:], *more]
    groups = (
        [plain, best_wide, best, same, large, free, last] if cuda else [[*plain, *best_wide, *best, *same]]
    )
    profiled = [best[0], best_wide[0], eager[0], eager_wide[0], ours(narrow, many[0], **fast)]
    return [*groups, profiled]


def plain_name(way: dict) -> str:
    return f"plain {way['way']}{', compiled' * bool(way.get('compiled'))}"


def compile_ahead(bench: Bench) -> None:
    """Compile what the table begins with in the background, while tests and checks are at work.

    A few processes do, each one thing after another, for more of them took the time of the tests.
    """
    plain, wide, best, *_ = _specs(bench)
    streams = [spec for spec in best if not spec["grouped"]]
    groups = [spec for spec in best if spec["grouped"]]
    for i, specs in enumerate(([plain[2], plain[5]], [wide[0], *streams], groups)):
        path = bench.options.results / f"compiled-{i}.jsonl"
        with path.open("wb") as out, bench.log("table").open("ab") as log:
            command = [*KINDLY, *task("table", specs=specs, seconds=0.0)]
            bench.compilers.append((started(command, out, log, **FEW_THREADS), path, specs))


def table(bench: Bench, until: float) -> str:
    patience = time.monotonic() + 0.2 * (until - time.monotonic())
    while any(process.poll() is None for process, *_ in bench.compilers) and time.monotonic() < patience:
        time.sleep(0.2)
    for process, path, specs in bench.compilers:
        end(process)
        for spec, line in zip(specs, path.read_text().splitlines(), strict=False):
            with contextlib.suppress(ValueError):  # cut
                found = json.loads(line)
                bench.figures.setdefault("cold", {})[spec["name"]] = found.get("first", found.get("failed"))
    say(f"seconds until the first replay, nothing compiled before: {bench.figures.get('cold')}")
    rows = bench.figures["table"] = {}
    *groups, _ = _specs(bench)
    for group in groups:
        pending = list(group)
        while pending and time.monotonic() < until - 5:
            heard, status = time.monotonic(), None
            with listening({"": task("table", specs=pending)}, bench.log("table"), until) as lines:
                for _, what in lines:
                    if isinstance(what, dict):
                        spec, heard = pending.pop(0), time.monotonic()
                        rows[spec["name"]] = spec | what
                        bench.keep()
                        say(_row(spec | what))
                    status = what if isinstance(what, int) else status
                    if time.monotonic() > heard + PATIENCE:
                        break
            if status != 0 and pending and time.monotonic() < until:
                spec, cause = pending.pop(0), "no answer" if status is None else f"status {status}"
                rows[spec["name"]] = spec | {"failed": f"{cause}: {last_lines(bench.log('table'))}"}
                say(_row(rows[spec["name"]]))
        for spec in pending:
            rows[spec["name"]] = spec | {"failed": "not measured"}
    bench.figures["best"] = {str(w): row for w in _widths(bench) if (row := best(rows, w))}
    bench.keep()
    for line in summary(bench.figures):
        say(line)
    return "time is up" if any(row.get("failed") == "not measured" for row in rows.values()) else "done"


def _row(row: dict) -> str:
    if "failed" in row:
        return f"{row['name']}: {row['failed']}"
    extra = f", {row['tests']:,} tests/s" if "tests" in row else ""
    extra += f", {row['graphs']} graphs compiled" if row.get("graphs") else ""
    extra += ", not captured" if row.get("eager") else ""
    return f"{row['name']}: {row['rate']:,.0f} img/s, {row['memory']} GiB, {row['first']} s first{extra}"


def summary(figures: dict) -> Iterator[str]:
    """The table: speeds, their ratios to the plain ways and their shares of the matrix rate."""
    known, rows = figures["machine"], figures["table"]
    yield "images a second; ratio to plain float32, bf16 in a graph, compiled in a graph; % of matrix rate"
    for row in sorted(rows.values(), key=lambda row: (row["width"], -row.get("rate", 0))):
        if "rate" not in row:
            continue
        plain = [rows[f"w{row['width']} {plain_name(way)}"].get("rate") for way in PLAIN]
        ratios = " ".join(f"{row['rate'] / rate:6.2f}" if rate else "     -" for rate in plain)
        share = 100 * row["rate"] * known["operations"][str(row["width"])] / known["matrix_rate"]
        yield f"{row['name']:32} {row['rate']:10,.0f}  {ratios}  {share:5.1f}"
    for width, row in figures["best"].items():
        yield f"best at width {width}: {row['name']}"


def best(rows: dict[str, dict], width: int) -> dict | None:
    """The smallest population near the fastest, of those that a sweep can train."""
    found = [
        {"compiled": False, "population": row["members"], **row}
        for row in rows.values()
        if row["way"] == "ours" and row["width"] == width and "rate" in row
        if not (row.get("layout") or row.get("free"))
    ]
    near = NEAR * max((row["rate"] for row in found), default=0.0)
    return min(
        (r for r in found if r["rate"] >= near), key=lambda r: (r["members"], -r["rate"]), default=None
    )


def keep_layouts(figures: dict, runs: list[Run], store: Store) -> int:
    """Keep in the store what was measured as best for networks of these runs; how many kinds there are."""
    kept = 0
    for run in {layouts.shape(run): run for run in runs}.values():
        row, depth = figures.get("best", {}).get(str(run.model.width)), figures["machine"]["depth"]
        if row and run.model.depth == depth:
            known = {field.name for field in fields(Layout)}
            layouts.keep(store, run, Layout(**{k: v for k, v in row.items() if k in known}))
            kept += 1
    return kept


def train(bench: Bench, until: float) -> str:
    options, device = bench.options, "cuda" if bench.figures["machine"]["cuda"] else "cpu"
    chosen = profiles.profile(options.profile, options.set or (), options.seeds)
    store = Store(options.results / options.profile)
    runs = [case.run for study in studies() for case in study.cases(chosen)]
    say(f"layouts kept: {keep_layouts(bench.figures, runs, store)}; records in {store.folder}")
    before = len(store.ids())
    command = [sys.executable, "-m", "repro", "run", *options.studies, "--profile", options.profile]
    command += [part for setting in options.set or () for part in ("--set", setting)]
    command += ["--seeds", str(options.seeds)] if options.seeds else []
    left = until - time.monotonic()
    command += ["--device", device, "--time-limit", f"{max(1, left - LEAVE):.0f}s"]
    packed = told = time.monotonic()
    status, log = None, bench.log("train")
    try:
        with listening({"": command}, log, until, REPRO_RESULTS=str(options.results)) as lines:
            for _, what in lines:
                status, now = what if isinstance(what, int) else status, time.monotonic()
                if now - packed > PACK:
                    pack(store, bench.out)
                    packed = now
                if now - told > TELL:
                    say(f"{len(store.ids())} runs recorded; {last_lines(log)[-150:]}")
                    told = now
    finally:
        pack(store, bench.out)
    there = len(store.ids())
    found = {"profile": options.profile, "before": before, "recorded": there, "status": status}
    bench.figures["train"] = found | {"command": command[1:]}
    say(f"{there} runs recorded, status {status}: {last_lines(log)}")
    return {0: "done", 3: "time is up", None: "time is up"}.get(status, "failed")


def pack(store: Store, out: Path) -> None:
    """Put all records so far, and the layouts that they were trained in, into DIR/records.tar.gz."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for path in sorted([*store.folder.glob("[0-9a-f]*.json"), *store.folder.glob(".layouts/*.json")]):
            archive.add(path, path.relative_to(store.folder.parent))
    files.replace(out / "records.tar.gz", content.getvalue())


PARTS = {"tests": tests, "checks": checks, "table": table, "compiled": compiled_tests, "train": train}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, logs and records")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of these, in the order to run them")
    parser.add_argument("--figures", type=Path, help="gpu.json of an earlier call")
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir(), "repro-gpu-results"))
    parser.add_argument("--profile", default="cifar10")
    parser.add_argument("--set", action="append", metavar="FIELD=VALUE", help="as `repro run` takes it")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("studies", nargs="*", help="to train; what is worth most first where none is named")
    found = parser.parse_args()
    found.parts = found.parts.split(",")
    if unknown := set(found.parts) - PARTS.keys():
        parser.error(f"parts are {', '.join(PARTS)}, not {', '.join(unknown)}")
    return found


def main() -> None:
    bench = Bench(options())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    try:
        machine(bench)
        if "table" in bench.options.parts and bench.figures["machine"]["cuda"]:
            compile_ahead(bench)
        for i, part in enumerate(bench.options.parts):
            start = time.monotonic()
            later = sum(LIMITS[name] for name in bench.options.parts[i:])
            limit = max(5.0, (bench.deadline - start) * LIMITS[part] / later)
            limit = limit if part == "train" else min(limit, LIMITS[part])
            try:
                ended = PARTS[part](bench, start + limit)
            except Exception as error:
                ended = f"failed: {type(error).__name__}: {error}"
            seconds = round(time.monotonic() - start, 1)
            bench.figures.setdefault("parts", {})[part] = {"ended": ended, "seconds": seconds}
            bench.keep()
            say(f"{part}: {ended}, {seconds} s")
    finally:
        for process, *_ in bench.compilers:
            end(process)
        bench.keep()


if __name__ == "__main__":
    main()
