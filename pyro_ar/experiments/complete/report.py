r"""What `pyro-ar complete` says: a table per task, one for the screen, a file for programs, and a picture per task."""

import io

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pyro_ar.experiments.complete.pictures import picture
from pyro_ar.experiments.complete.run import AVERAGED, Plan
from pyro_ar.experiments.complete.tasks import TASKS
from pyro_ar.experiments.store import write_atomically, write_csv

__all__ = ["screen", "table", "tables", "write"]

WIDTH = 150  # letters of a line of the text file
MARKS = {"exact": "", "estimate": "~", "at least": "≥"}
NOTE = ("nats/cell: held-out log p(hidden | visible) per hidden cell, higher is better; ± over rows, ± est. of the estimates alone. ~ an estimate of "
        "sequential Monte Carlo (?: fewer than half of the rows can be trusted); ≥ a density over levels, which bounds the law it implies. "
        "RMSE of the mean of the draws and MAE of their median, in levels.")


Units = Sequence[Mapping[str, Any]]


def write(plan: Plan, units: Units, folder: Path) -> list[Path]:
    """`report.txt`, `results.csv` and a picture of each task; returns what was written."""
    text = Console(width=WIDTH, file=io.StringIO(), highlight=False)
    with text.capture() as captured:
        text.print(tables(plan, units))
    write_atomically(folder / "report.txt", "\n".join(line.rstrip() for line in captured.get().strip().splitlines()) + "\n")
    write_csv(folder / "results.csv", csv_rows(plan, units))
    paths = [folder / "report.txt", folder / "results.csv"]
    for task in plan.tasks or ():
        figure = picture(plan, task, cells_of(units, task))
        if figure is not None:
            image = io.BytesIO()
            figure.savefig(image, format="png")
            write_atomically(folder / f"{task}.png", image.getvalue())
            paths.append(folder / f"{task}.png")
    return paths


def cells_of(units: Units, task: str) -> dict[str, Mapping[str, Any]]:
    """What each model says of a task: the highest log p first, then fills, then what has no answer."""
    cells = {unit["model"]: unit["cells"][task] for unit in units if task in unit["cells"]}

    def place(name: str) -> tuple[int, float]:
        cell = cells[name]
        if "reason" in cell:
            return 3, 0.0
        if cell["kind"] == "fill":
            return 2, cell["rmse"]
        return (1, 0.0) if cell["log_p"] is None else (0, -cell["log_p"])

    return {name: cells[name] for name in sorted(cells, key=place)}


def csv_rows(plan: Plan, units: Units) -> list[dict[str, Any]]:
    """One row per task and model; nats per hidden variable, errors in levels."""
    numbers = ("kind", "method", "log_p", "error", "estimate_error", "trusted", "rmse", "mae", "hidden", "rows", "reason")
    cost = {(unit["space"], unit["model"]): unit for unit in units}
    rows = []
    for task in plan.tasks or ():
        for name, cell in cells_of(units, task).items():
            unit = cost[TASKS[task].space, name]
            values = {key: round(v, 6) if isinstance(v := cell.get(key), float) else v for key in numbers}
            rows.append({"task": task, "model": name, **values, "parameters": unit["parameters"], "fit_cpu_seconds": unit["fit_seconds"],
                         "answer_cpu_seconds": unit["answer_seconds"]})
    return rows


def tables(plan: Plan, units: Units) -> RenderableType:
    """The table of every task."""
    parts: list[RenderableType] = [Text(str(plan.data))]
    for task in plan.tasks or ():
        parts += [Text(""), table(task, cells_of(units, task))]
    return Group(*parts, *_coherences(units), Text("\n" + NOTE))


def _coherences(units: Units) -> list[RenderableType]:
    """How far any-order families are from one joint; nothing where there are none."""
    measured = [unit for unit in units if "coherence" in unit]
    if not measured:
        return []
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown.add_column("family", no_wrap=True)
    for head in ("orders averaged", "log p(x)", "spread over orders", "|marginal - sum|", "marginal - sum"):
        shown.add_column(head, justify="right")
    for unit in measured:
        found = unit["coherence"]
        for i, many in enumerate(AVERAGED):
            name = f"{unit['model']} of {unit['space']}" if i == 0 else ""
            shown.add_row(name, str(many), f"{found['log_prob'][i]:.2f}", f"{found['spread'][i]:.3f}", f"{found['gap'][i]:.4f}", f"{found['bias'][i]:.4f}")
    hidden = " or ".join(dict.fromkeys(str(unit["coherence"]["hidden"]) for unit in measured))
    return [Text("\nHow far any-order families are from one joint: nats per row", style="bold"), shown,
            Text(f"One joint would have the same log p(x) in every order, and marginals that are sums of p over hidden cells ({hidden} of a row, at random).")]


def table(task: str, cells: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """All that is known of one task."""
    some = next(iter(cells.values()))
    hidden = next((f", {cell['hidden']:g} variables hidden in each of {cell['rows']} held-out rows" for cell in cells.values() if "hidden" in cell), "")
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown.add_column("model", no_wrap=True)
    for head in ("nats/cell", "±", "± est.", "trusted", "RMSE", "MAE"):
        shown.add_column(head, justify="right", no_wrap=True)
    shown.add_column("how", no_wrap=False)
    for name, cell in cells.items():
        shown.add_row(name, *_line(cell))
    return Group(Text(f"{task}: hidden is {TASKS[task].label}{hidden if some else ''}", style="bold"), shown)


def _line(cell: Mapping[str, Any]) -> list[str]:
    if "reason" in cell:
        return ["", "", "", "", "", "", cell["reason"]]
    fills = [f"{cell['rmse']:.2f}", f"{cell['mae']:.2f}"]
    if cell["kind"] == "fill":
        return ["", "", "", "", *fills, "a fill, no joint"]
    if cell["log_p"] is None:
        return ["-inf", "", "", "", *fills, "it holds some row for impossible"]
    estimated = cell["kind"] == "estimate"
    own = [f"{cell['estimate_error']:.3f}", f"{100 * cell['trusted']:.0f} %"] if estimated else ["", ""]
    return [f"{MARKS[cell['kind']]}{cell['log_p']:.3f}", f"{cell['error']:.3f}", *own, *fills, cell["method"]]


def screen(plan: Plan, units: Units, written: Sequence[Path]) -> RenderableType:
    """All tasks in one table, or the tables of few tasks."""
    files = Text(f"Written to {written[0].parent}/: {', '.join(path.name for path in written)}")
    if len(plan.tasks or ()) <= 2:
        return Group(tables(plan, units), files)
    cells = {task: cells_of(units, task) for task in plan.tasks or ()}
    names = list(dict.fromkeys(unit["model"] for unit in units))
    parts = [_overview("Held-out log p of hidden cells given the visible ones, nats per hidden cell (higher is better)", cells, names, _log_p),
             _overview("\nError of the fill, RMSE in levels (of joints: of the mean of their draws)", cells, names, _rmse)]
    return Group(*parts, *_coherence_lines(units), Text(NOTE + " report.txt has all errors; --full shows it."), files)


def _coherence_lines(units: Units) -> list[Text]:
    lines = []
    for unit in units:
        if found := unit.get("coherence"):
            lines.append(Text(f"Coherence, {unit['model']} of {unit['space']}: log p of a row spreads by {found['spread'][0]:.2f} nats over orders, by "
                              f"{found['spread'][-1]:.2f} averaged over {AVERAGED[-1]}; marginals are {found['gap'][0]:.3f} and "
                              f"{found['gap'][-1]:.3f} nats off sums."))
    return lines


def _overview(title: str, cells: Mapping[str, Mapping[str, Any]], names: Sequence[str], say: Any) -> RenderableType:
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    shown.add_column("model", no_wrap=True)
    for task in cells:
        shown.add_column(TASKS[task].short, justify="right", no_wrap=True)
    for name in names:
        line = [say(of[name]) if name in of and "reason" not in of[name] else "" for of in cells.values()]
        if any(line):
            shown.add_row(name, *line)
    return Group(Text(title, style="bold"), shown)


def _log_p(cell: Mapping[str, Any]) -> str:
    if cell["kind"] == "fill":
        return ""
    doubt = "?" if cell["trusted"] < 0.5 else ""
    return "-inf" if cell["log_p"] is None else f"{MARKS[cell['kind']]}{cell['log_p']:.2f}{doubt}"


def _rmse(cell: Mapping[str, Any]) -> str:
    return f"{cell['rmse']:.2f}"
