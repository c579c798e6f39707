"""Holdfast measures, predicts and controls what a language model forgets when it is fine-tuned.

    import holdfast

    table = holdfast.sweep("study.yaml", out="runs")       # fine-tune, and measure forgetting along the way
    laws = holdfast.fit(table)                             # what learning costs
    print(holdfast.plan(laws, max_forgetting=0.05))         # how far to go
    print(holdfast.validate(table))                        # how far to trust them

Names are loaded when first used: reading and fitting results never imports torch.
"""

import logging
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.archive import table
    from holdfast.audit import measure
    from holdfast.behaviour import ProbeReport
    from holdfast.design import NextRuns, next_runs
    from holdfast.exchange import exchanges
    from holdfast.forecasting import Forecast, forecast
    from holdfast.forgetting import ForgettingReport
    from holdfast.laws import Fit, Laws, fit
    from holdfast.planning import Plan, plan
    from holdfast.presets import published
    from holdfast.probing import probe
    from holdfast.reporting import report
    from holdfast.stats import Estimate
    from holdfast.sweeps import sweep
    from holdfast.validation import Validation, validate

# On some CPUs it warns of a kernel of its own that is missing, whenever peft is imported, quantised or not.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOME = {
    "Estimate": "stats",
    "Fit": "laws",
    "Forecast": "forecasting",
    "ForgettingReport": "forgetting",
    "Laws": "laws",
    "NextRuns": "design",
    "Plan": "planning",
    "ProbeReport": "behaviour",
    "Validation": "validation",
    "exchanges": "exchange",
    "fit": "laws",
    "forecast": "forecasting",
    "measure": "audit",
    "next_runs": "design",
    "plan": "planning",
    "probe": "probing",
    "published": "presets",
    "report": "reporting",
    "sweep": "sweeps",
    "table": "archive",
    "validate": "validation",
}

__all__ = [
    "Estimate", "Fit", "Forecast", "ForgettingReport", "Laws", "NextRuns", "Plan", "ProbeReport", "Validation",
    "exchanges", "fit", "forecast", "measure", "next_runs", "plan", "probe", "published", "report", "sweep", "table",
    "validate",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("holdfast")
    if name not in _HOME:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    return getattr(import_module(f"holdfast.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
