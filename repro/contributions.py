"""What re-initialising each module contributes to the gap, told from all 64 subsets of the six modules.

Two accounts of one table. Both are averages of v(S + module) - v(S) over the
subsets S without the module, where v(S) is the gap after re-initialising S: the
main effect of a factorial design weighs all subsets alike, the Shapley value all
sizes of subset alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from repro.config import MODULES

SUBSETS = tuple("".join(map(str, s)) for k in range(7) for s in itertools.combinations(MODULES, k))
_REST = len(MODULES) - 1  # modules besides the one in question


def recorded(gaps: pd.DataFrame) -> int:
    """Subsets, of 64, that are recorded of the seed with most."""
    return int(_games(gaps).notna().sum(axis=1).max()) if len(gaps) else 0


def main_effects(gaps: pd.DataFrame, column: str = "gap") -> pd.DataFrame:
    """Columns seed, module and `value`: mean of `column` with the module re-initialised, less that without.

    Takes `Results.gaps` of the reset study. In the unit of `column`, so positive
    where re-initialising the module helps. Seeds with fewer than all 64 subsets
    are left out.
    """
    return _averaged(gaps, column, lambda size: 1 / 2**_REST)


def shapley(gaps: pd.DataFrame, column: str = "gap") -> pd.DataFrame:
    """Columns seed, module and `value`: what each module contributes on average over all orders of six.

    As `main_effects`, but the six values of a seed sum to the change of `column`
    from none re-initialised to all.
    """
    return _averaged(gaps, column, lambda size: 1 / (len(MODULES) * math.comb(_REST, size)))


def _games(gaps: pd.DataFrame, column: str = "gap") -> pd.DataFrame:
    """The column by seed (rows) and subset (64 columns), NaN where not recorded."""
    if missing := {"seed", "modules", column} - set(gaps.columns):
        if len(gaps):
            raise ValueError(
                f"no column {sorted(missing)[0]!r}: the contributions take gaps of the reset study"
            )
        return pd.DataFrame(columns=SUBSETS, dtype=float)
    return gaps.pivot(index="seed", columns="modules", values=column).reindex(columns=SUBSETS)


def _averaged(gaps: pd.DataFrame, column: str, weight: Callable[[int], float]) -> pd.DataFrame:
    """Average of v(S + module) - v(S) by seed and module, `weight` given the size of S."""
    games = _games(gaps, column).dropna()
    weights = np.array(
        [[weight(len(s) - 1) if str(m) in s else -weight(len(s)) for m in MODULES] for s in SUBSETS]
    )
    values = pd.DataFrame(games.to_numpy(float) @ weights, games.index, MODULES)
    long = values.rename_axis(index="seed", columns="module").stack().rename("value").reset_index()
    return long.astype({"module": int, "value": float})
