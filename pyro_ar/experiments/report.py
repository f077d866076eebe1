r"""What the occlusion experiment leaves on disk: a table for programs (CSV), its summary (JSON), and pictures."""

import io
import json
import math

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_ar.experiments.lineup import REFERENCE
from pyro_ar.experiments.occlusion_pictures import draw
from pyro_ar.experiments.occlusion_tables import costs, tables
from pyro_ar.experiments.occlusions import OCCLUSIONS
from pyro_ar.experiments.plan import Plan
from pyro_ar.experiments.scoring import METRICS, Cell, Units, differences, summarise
from pyro_ar.experiments.store import write_atomically, write_csv

__all__ = ["csv_rows", "draw", "summary_json", "tables", "write"]


def write(plan: Plan, units: Units, folder: Path, *, reference: str = REFERENCE) -> list[Path]:
    """`results.csv`, `summary.json` and the pictures; returns what was written."""
    write_csv(folder / "results.csv", csv_rows(units, reference))
    write_atomically(folder / "summary.json", json.dumps(summary_json(units, reference), indent=1, allow_nan=False) + "\n")
    paths = [folder / "results.csv", folder / "summary.json"]
    for name, figure in draw(plan, units, reference=reference).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_atomically(folder / name, buffer.getvalue())
        paths.append(folder / name)
    return paths


def csv_rows(units: Units, reference: str = REFERENCE) -> list[dict[str, Any]]:
    """One row per model and occlusion; shares, not percentages; differences from the reference on the same splits and hidden cells."""
    compared, rows = differences(units, reference), []
    for model, cells in summarise(units).items():
        cost = costs(units, model)
        for name, cell in cells.items():
            row: dict[str, Any] = {"model": model, "occlusion": name, "hidden": OCCLUSIONS[name].label, "splits": cell.splits}
            row |= _numbers(cell) | {"floored_rows": cell.floored, "reference": reference}
            row |= {f"difference_{key}": value for key, value in _numbers(compared.get(model, {}).get(name)).items()}
            row |= {"parameters": cost.parameters, "fit_cpu_seconds": _rounded(cost.fit_seconds), "cpu_ms_per_row": _rounded(cost.ms_per_row)}
            rows.append(row | {"reason": cell.reason})
    return rows


def summary_json(units: Units, reference: str = REFERENCE) -> dict[str, Any]:
    """The same by model and occlusion; None where there is no answer."""
    compared, models = differences(units, reference), {}
    for model, cells in summarise(units).items():
        cost = costs(units, model)
        models[model] = {
            "parameters": cost.parameters, "fit_cpu_seconds": _rounded(cost.fit_seconds), "cpu_ms_per_row": _rounded(cost.ms_per_row),
            "chosen": {name: sorted(set(values)) for name, values in cost.chosen.items()},
            "occlusions": {name: _entry(cell, compared.get(model, {}).get(name)) for name, cell in cells.items()},
        }
    return {"reference": reference, "models": models}


def _entry(cell: Cell, difference: Cell | None) -> dict[str, Any]:
    if cell.reason:
        return {"splits": cell.splits, "reason": cell.reason}
    return {"splits": cell.splits, **_numbers(cell), "floored_rows": cell.floored, "difference": None if difference is None else _numbers(difference)}


def _numbers(cell: Cell | None) -> dict[str, float | None]:
    mean: Mapping[str, float] = {} if cell is None else cell.mean
    error: Mapping[str, float] = {} if cell is None else cell.error
    return {key: _rounded(values.get(metric, math.nan)) for metric in METRICS for key, values in ((metric, mean), (f"{metric}_se", error))}


def _rounded(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
