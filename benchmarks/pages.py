"""The tables on the page on speed, from the files in `benchmarks/results`: `python -m benchmarks.pages`.

`python -m benchmarks.pages DIR/gpu.json` first publishes there what `benchmarks.gpu` found.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from benchmarks.gpu import PLAIN, plain_name, same_bits

FOLDER = Path(__file__).parent / "results"
TABLES = Path(__file__).parent.parent / "book" / "speed.inc"  # shown by the page on speed
COSTS = (  # columns of a table of their own
    "plain, tests/s",
    "repro, tests/s",
    "of matrix rate, %",
    "memory of a slot, GiB",
    "start-up, s",
)
LONGEST = 6  # kernels of a profile that are published
SAME = {
    "twice": "twice",
    "resumed": "stopped and resumed",
    "as alone": "as alone",
    "as eager": "as not compiled",
}


def markdown() -> str:
    """All tables in Markdown, a section for each file."""
    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    return "\n".join(gpu_section(one) if "table" in one else section(one) for one in found)


def section(found: dict) -> str:
    """What `make bench` measured on a device, in Markdown: tables, each narrow enough for a page.

    Files of before have no tests a second and no costs of a store.
    """
    rows = pd.DataFrame(found["rows"])
    rows["shape"] = rows["shape"].str.replace(" ", "\N{NO-BREAK SPACE}")
    costs = [name for name in COSTS if name in rows]
    tables = [_table(rows.drop(columns=costs)), _table(rows[["shape", "population", *costs]])]
    tables += [_table(pd.DataFrame([found["store"]]))] if "store" in found else []
    text = "\n\n".join(tables)
    day, commit, torch = found["finished"][:10], found["commit"][:10], found["versions"]["torch"]
    return (
        f"## {found['device']}, {found['cores']} cores\n\n"
        f"{day}, commit {commit}, torch {torch}. Sweeps, processes by threads: {found['slots']} x "
        f"{found['threads']}, {found['precision']}; plain loop: 1 x {found['plain_threads']}, float32.\n\n"
        f"{text}\n"
    )


def gpu_section(found: dict) -> str:
    """What `benchmarks.gpu` measured, in Markdown."""
    known, train = found["machine"], found.get("train")
    about = (
        f"{known['day']}, commit {known['commit'][:10]}, torch {known['versions']['torch']}. A large matrix "
        f"product reached {known['matrix_rate'] / 1e12:.0f} TFLOP/s."
    )
    if train:
        runs, seconds = train["recorded"] - train["before"], found["parts"]["train"]["seconds"]
        about += f" Then {runs} runs of `{train['profile']}` were trained in {seconds:.0f} s."
    earlier = found.get("earlier")
    parts = [about, _table(_speeds(found, known, earlier["table"] if earlier else {}))]
    if earlier:
        parts += [
            f"† to the plain loop of an earlier run on the same kind of card, commit "
            f"{earlier['commit'][:10]}, {earlier['matrix_rate'] / 1e12:.0f} TFLOP/s:",
            _table(_speeds(earlier, known | {"matrix_rate": earlier["matrix_rate"]}, {})),
        ]
    parts += [
        "Images tested, memory, and seconds until a step is replayed for the first time, in a process that "
        "finds what another one has compiled, and where nothing was compiled before:",
        _table(_costs(found)),
        "Which trainings of a tiny sweep gave the same bits, in all curves:",
        _table(_bits(found)),
        "Milliseconds of three steps under a profiler, and shares of kinds of kernels in their time, %:",
        _table(_profiles(found)),
    ]
    return f"## {known['device']}\n\n" + "\n\n".join(parts) + "\n"


def _speeds(found: dict, known: dict, elsewhere: dict[str, dict]) -> pd.DataFrame:
    """A row for each way to train; ratios to plain ones that failed here are to those of `elsewhere`."""
    rows = []
    for name, row in found["table"].items():
        if "rate" not in row:
            continue
        ratios = {}
        for way in PLAIN:
            plain = f"w{row['width']} {plain_name(way)}"
            here, there = (table.get(plain, {}).get("rate") for table in (found["table"], elsewhere))
            ratio = row["rate"] / (here or there or math.inf)
            ratios[f"to {plain_name(way)}"] = f"{ratio:.2f}" + "†" * (here is None)
        share = 100 * row["rate"] * known["operations"][str(row["width"])] / known["matrix_rate"]
        rate = {"images/s": f"{row['rate']:,.0f}"}
        rows.append({"way": _way(name), **rate, **ratios, "of matrix rate, %": f"{share:.1f}"})
    return pd.DataFrame(rows)


def _costs(found: dict) -> pd.DataFrame:
    rows = [
        {
            "way": _way(name),
            "tests/s": f"{row['tests']:,}",
            "memory, GiB": row["memory"],
            "s": row["first"],
            "s, compiling": found.get("cold", {}).get(name, "–"),
        }
        for name, row in found["table"].items()
        if "rate" in row and "tests" in row
    ]
    return pd.DataFrame(rows)


def _bits(found: dict) -> pd.DataFrame:
    words = {True: "yes", False: "no", None: "–"}
    rows = [
        {"way": way, **{column: words[same.get(name)] for name, column in SAME.items()}}
        for way, same in same_bits(found["bits"]).items()
    ]
    return pd.DataFrame(rows)


def _profiles(found: dict) -> pd.DataFrame:
    rows = [
        {"way": _way(name.removeprefix("profile of ")), "ms": one["wall_ms"], **one["shares"]}
        for name, one in found["checks"].items()
        if name.startswith("profile of ") and "failed" not in one
    ]
    return pd.DataFrame(rows)


def _way(name: str) -> str:
    return re.sub(r"w(\d+) (?:P=)?(.*)", r"width \1: \2", name).replace("streams", "on streams")


def published(figures: dict) -> dict:
    """What is kept of a `gpu.json`: not what was not measured, nor most kernels."""
    checks = {
        name: one | {"longest": one["longest"][:LONGEST]} if "longest" in one else one
        for name, one in figures["checks"].items()
    }
    table = {name: row for name, row in figures["table"].items() if row.get("failed") != "not measured"}
    return figures | {"checks": checks, "table": table}


def _table(rows: pd.DataFrame) -> str:
    text = rows.map(lambda v: f"{v:g}" if isinstance(v, int | float) else v)
    lines = [list(rows), ["---", *["---:"] * (rows.shape[1] - 1)], *text.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(paths: Iterable[str]) -> None:
    for path in paths:
        found = published(json.loads(Path(path).read_text()))
        name = re.sub(r"[^a-z0-9]+", "-", found["machine"]["device"].lower().removeprefix("nvidia "))
        (FOLDER / f"gpu-{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    TABLES.write_text(markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
