r"""What the occlusion experiment leaves on disk: all tables as text, a table for programs (CSV), its summary (JSON), and pictures."""

import io
import json
import math

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rich.console import Console, RenderableType

from pyro_ar.experiments.occlusion.lineup import REFERENCE
from pyro_ar.experiments.occlusion.occlusions import OCCLUSIONS
from pyro_ar.experiments.occlusion.pictures import draw
from pyro_ar.experiments.occlusion.plan import Plan
from pyro_ar.experiments.occlusion.scoring import AVERAGED, Cell, Units, differences, summarise
from pyro_ar.experiments.occlusion.screen import screen
from pyro_ar.experiments.occlusion.tables import costs, tables
from pyro_ar.experiments.store import write_atomically, write_csv

__all__ = ["csv_rows", "draw", "screen", "summary_json", "tables", "write"]

WIDTH = 120  # letters of a line of the text file


def write(plan: Plan, units: Units, folder: Path, *, reference: str = REFERENCE) -> list[Path]:
    """`report.txt`, `results.csv`, `summary.json` and the pictures; returns what was written."""
    write_atomically(folder / "report.txt", _as_text(tables(plan, units, reference=reference)))
    write_csv(folder / "results.csv", csv_rows(units, reference))
    write_atomically(folder / "summary.json", json.dumps(summary_json(units, reference), indent=1, allow_nan=False) + "\n")
    paths = [folder / name for name in ("report.txt", "results.csv", "summary.json")]
    for name, figure in draw(plan, units, reference=reference).items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_atomically(folder / name, buffer.getvalue())
        paths.append(folder / name)
    return paths


def _as_text(tables: RenderableType) -> str:
    screen = Console(width=WIDTH, file=io.StringIO(), highlight=False)
    with screen.capture() as captured:
        screen.print(tables)
    return "\n".join(line.rstrip() for line in captured.get().strip().splitlines()) + "\n"


def csv_rows(units: Units, reference: str = REFERENCE) -> list[dict[str, Any]]:
    """One row per model and occlusion; shares, not percentages; differences from the reference on the same splits and hidden cells."""
    compared, rows = differences(units, reference), []
    for model, cells in summarise(units).items():
        cost = costs(units, model)
        for name, cell in cells.items():
            row: dict[str, Any] = {"model": model, "occlusion": name, "hidden": OCCLUSIONS[name].label, "splits": cell.splits}
            row |= _numbers(cell) | {"calibration_floor": _rounded(cell.floor), "floored_rows": cell.floored,
                                    "estimate_error": _rounded(cell.estimate_error), "reference": reference}
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
    return {"splits": cell.splits, **_numbers(cell), "calibration_floor": _rounded(cell.floor), "floored_rows": cell.floored,
            "estimate_error": _rounded(cell.estimate_error), "difference": None if difference is None else _numbers(difference)}


def _numbers(cell: Cell | None) -> dict[str, float | None]:
    """Means with their errors; the calibration error has none."""
    mean: Mapping[str, float] = {} if cell is None else cell.mean
    error: Mapping[str, float] = {} if cell is None else cell.error
    numbers = {key: _rounded(values.get(metric, math.nan)) for metric in AVERAGED for key, values in ((metric, mean), (f"{metric}_se", error))}
    return numbers | {"calibration": _rounded(mean.get("calibration", math.nan))}


def _rounded(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
