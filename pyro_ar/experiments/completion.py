r"""`pyro-ar impute`: a table file completed, once or many times, and a report of what was filled and how sure."""

import csv
import io
import os

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyro_ar.checks import require
from pyro_ar.data.files import is_empty, is_number, read_csv
from pyro_ar.experiments.store import write_atomically
from pyro_ar.imputation import JointImputer

__all__ = ["ColumnReport", "complete_table"]

DRAWS = 100  # completed tables that tell how sure a filled cell is


class ColumnReport(NamedTuple):
    """What was filled in one column.

    Attributes:
        name: Of the column.
        kind: What it was found to be.
        holes: Cells that were empty.
        unsure: Mean standard deviation of a filled number over that of the column, or mean probability that a filled state is another.
    """

    name: str
    kind: str
    holes: int
    unsure: float | None


def complete_table(path: str | os.PathLike, out: Path, *, tables: int = 0, joint: str | None = None, kinds: Mapping[str, str] | None = None,
                   seed: int = 0) -> tuple[JointImputer, list[ColumnReport], list[Path]]:
    """Read a CSV file, and write `completed.csv`, `completed-1.csv`, ... and `report.csv`; visible cells keep their spelling.

    Args:
        path: Of the table, whose first line holds names or is a row, as `read_csv` says.
        out: A folder, made where there is none.
        tables: Draws of the whole table to be written besides.
        joint: As in `JointImputer`.
        kinds: As there.
        seed: Of all draws.

    Returns:
        The fitted imputer, the report, and the files written.

    Raises:
        ValueError: No table, a column of mixed types or without values, no empty cell at all, or bad options.
    """
    names, lines = read_csv(path)
    require(len(lines) > 0, f"{path}: wanted rows, the file is empty")
    width = len(lines[0]) if names is None else len(names)
    for number, line in enumerate(lines, 1 if names is None else 2):
        require(len(line) == width, f"{path}: wanted {width} columns in line {number}", len(line))
    holes = np.array([[is_empty(cell) for cell in line] for line in lines])
    require(bool(holes.any()), f"{path}: there is nothing to fill: no cell is empty")
    require(isinstance(tables, int) and tables >= 0, "tables must be 0 or more", tables)
    called = [str(i) if names is None else name or f"(column {i})" for i, name in enumerate(names or lines[0])]
    frame = _frame(called, lines, holes, kinds or {})
    imputer = JointImputer(joint, kinds=kinds, random_state=seed).fit(frame)
    filled = imputer.transform(frame)
    drawn = imputer.sample(frame, max(DRAWS, tables))
    report = [_report(column, [one[column.name].to_numpy() for one in drawn], holes[:, i]) for i, column in enumerate(imputer.columns_)]
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, table in [("completed.csv", filled), *((f"completed-{k + 1}.csv", drawn[k]) for k in range(tables))]:
        _write(out / name, names, lines, holes, table)
        written.append(out / name)
    _write_rows(out / "report.csv", [list(ColumnReport._fields), *([*row[:3], "" if row.unsure is None else f"{row.unsure:.4f}"] for row in report)])
    return imputer, report, [*written, out / "report.csv"]


def _frame(names: Sequence[str], lines: list[list[str]], holes: np.ndarray, kinds: Mapping[str, str]) -> "object":
    import pandas as pd

    columns = {}
    for i, name in enumerate(names):
        cells = [None if hole else line[i].strip() for line, hole in zip(lines, holes[:, i], strict=True)]
        told = [is_number(cell) for cell in cells if cell is not None]
        numbers = all(told)
        mixed = f"column {name} must hold numbers or words, not both; name its kind if these are categories"
        require(numbers or not any(told) or kinds.get(name) in ("binary", "categorical"), mixed, *sorted({c for c in cells if c is not None})[:3])
        columns[name] = pd.Series([float(cell) if cell is not None else None for cell in cells] if numbers else cells, dtype=float if numbers else object)
    require(len(columns) == len(names), "columns must have names of their own", list(names))
    return pd.DataFrame(columns)


def _report(column: "object", draws: list[np.ndarray], holes: np.ndarray) -> ColumnReport:
    many = int(holes.sum())
    name, kind = column.name, column.kind  # type: ignore[attr-defined]
    if not many:
        return ColumnReport(name, kind, 0, None)
    cells = np.stack([one[holes] for one in draws])
    if column.is_number:  # type: ignore[attr-defined]
        return ColumnReport(name, kind, many, float(cells.astype(float).std(0).mean() / column.scale))  # type: ignore[attr-defined]
    shares = [max(np.unique(cells[:, i].astype(str), return_counts=True)[1]) / len(cells) for i in range(many)]
    return ColumnReport(name, kind, many, float(1 - np.mean(shares)))


def _write(path: Path, names: Sequence[str] | None, lines: list[list[str]], holes: np.ndarray, table: "object") -> None:
    values = table.to_numpy(dtype=object)  # type: ignore[attr-defined]
    rows = [[_spelled(values[r, i]) if holes[r, i] else cell for i, cell in enumerate(line)] for r, line in enumerate(lines)]
    _write_rows(path, rows if names is None else [list(names), *rows])


def _spelled(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def _write_rows(path: Path, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue())
