"""The executable edition of "A study on the plasticity of neural networks" (arXiv 2106.00042).

It offers the names that notebooks and scripts need; each is imported when first used.
"""

import importlib

__version__ = "0.1.0"

_HERE = {
    **dict.fromkeys(("gap", "run_study", "train"), "repro.running"),
    **dict.fromkeys(("ALL", "HALF", "Optimizer", "Stage", "Subset"), "repro.config"),
    "scale": "repro.profiles",
    "results": "repro.analysis.recorded",
    "claims_table": "repro.scorecard",
    "code": "repro.data.own",
}
__all__ = list(_HERE)


def __getattr__(name: str) -> object:
    if name not in _HERE:
        raise AttributeError(f"module 'repro' has no attribute {name!r}")
    return getattr(importlib.import_module(_HERE[name]), name)
