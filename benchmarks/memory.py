"""What a sweep holds in memory: `python -m benchmarks.memory [STUDY]...`, on Linux.

Trains studies of `quick`, all of them by default, into a store of its own and
looks at its processes every second. The highest sums are given by how many runs
were recorded by then, as a sweep should not grow with them: of resident memory,
in which what processes share counts in each, and of proportional shares, in
which it counts once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from repro.store.records import ROOT

PROFILE = "quick"
STEPS = 8  # rows of the table


def processes(pid: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [pid, *(p for child in children for p in processes(int(child)))]


def held(pid: int) -> tuple[float, float]:
    """Resident memory of a process and its proportional share, in GiB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0, 0.0
    rss, pss = (re.search(rf"^{name}: +(\d+) kB", text, re.MULTILINE) for name in ("Rss", "Pss"))
    return (int(rss[1]) / 2**20, int(pss[1]) / 2**20) if rss and pss else (0.0, 0.0)


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "repro", "run", *sys.argv[1:], "--profile", PROFILE]
        with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"REPRO_RESULTS": folder}) as sweep:
            while sweep.poll() is None:
                memory = [held(pid) for pid in processes(sweep.pid)]
                if memory:
                    recorded = len(list(Path(folder, PROFILE).glob("*.json")))
                    rows.append((recorded, len(memory), *map(sum, zip(*memory, strict=True))))
                time.sleep(1)
    names = ["runs recorded", "processes", "resident, GiB", "shares, GiB"]
    found = pd.DataFrame(rows, columns=names)
    step = found[names[0]].max() // STEPS + 1
    found[names[0]] = [f"{n - n % step} to {n - n % step + step - 1}" for n in found[names[0]]]
    print(found.groupby(names[0], sort=False).max().round(2).to_string())
    sys.exit(sweep.returncode)


if __name__ == "__main__":
    main()
