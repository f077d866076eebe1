"""What `pyro-ar anomaly` says: AUROC by kind of strange rows, where a likelihood fails, and the ranking."""

import io

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pyro_ar.experiments.anomaly.detectors import RIVALS
from pyro_ar.experiments.anomaly.run import HELD_OUT, MAPS, Plan
from pyro_ar.experiments.anomaly.strange import KINDS
from pyro_ar.experiments.store import write_atomically, write_csv
from pyro_ar.plots import surprise_maps

__all__ = ["failures", "screen", "summary", "write"]

WIDTH = 120
NAMED = 5  # least plausible rows that are named

Units = Sequence[Mapping[str, Any]]


def summary(units: Units) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation over the classes left out, by model and kind of strange rows."""
    found: dict[str, dict[str, list[float]]] = {}
    for unit in units:
        for kind, value in unit.get("auroc", {}).items():
            found.setdefault(unit["model"], {}).setdefault(kind, []).append(value)
    return {model: {kind: (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0) for kind, values in kinds.items()}
            for model, kinds in found.items()}


def write(plan: Plan, units: Units, folder: Path) -> list[Path]:
    """`report.txt`, `auroc.csv`, `ranking.csv`, and `surprise.png` where rows are images; returns what was written."""
    text = Console(width=WIDTH, file=io.StringIO(), highlight=False)
    with text.capture() as captured:
        text.print(_said(plan, units))
    write_atomically(folder / "report.txt", "\n".join(line.rstrip() for line in captured.get().strip().splitlines()) + "\n")
    write_csv(folder / "auroc.csv", _auroc_rows(units))
    write_csv(folder / "ranking.csv", _ranked(plan, units))
    paths = [folder / name for name in ("report.txt", "auroc.csv", "ranking.csv")]
    image = _picture(plan, units)
    if image is not None:
        write_atomically(folder / "surprise.png", image)
        paths.append(folder / "surprise.png")
    return paths


def _auroc_rows(units: Units) -> list[dict[str, Any]]:
    rows = []
    for unit in units:
        for kind, value in unit.get("auroc", {}).items():
            other = unit.get("two_sided", {}).get(kind)
            chosen = " ".join(f"{name}={value:g}" for name, value in unit.get("chosen", {}).items())
            rows.append({"model": unit["model"], "class_left_out": unit["class"], "strange": kind, "auroc": round(value, 6),
                         "auroc_two_sided": None if other is None else round(other, 6), "chosen": chosen, "cpu_seconds": unit["seconds"]})
    return rows


def _ranked(plan: Plan, units: Units) -> list[dict[str, Any]]:
    """All rows, the least plausible first; rows count from 0."""
    scores = next(unit["log_p"] for unit in units if unit["part"] == "ranking")
    order = np.argsort(scores, kind="stable")
    labels = None if plan.data.y is None else plan.data.y.tolist()
    return [{"place": place, "row": int(row), "label": None if labels is None else labels[row], "log_p": scores[row]} for place, row in enumerate(order, 1)]


def _picture(plan: Plan, units: Units) -> bytes | None:
    maps = next(unit["maps"] for unit in units if unit["part"] == "ranking")
    ranked = [row for row in _ranked(plan, units) if str(row["row"]) in maps]
    shape = plan.data.image_shape
    names = [given for given in MAPS if ranked and all(given in maps[str(row["row"])] for row in ranked)]
    if not names or shape is None:
        return None
    images = [plan.data.x[row["row"]].reshape(shape).numpy() for row in ranked]
    captions = [f"row {row['row']}" + ("" if row["label"] is None else f", class {row['label']}") + f"\n{row['log_p']:.1f} nats" for row in ranked]
    rows = {MAPS[given].replace("given ", "given\n"): [np.array(maps[str(row["row"])][given]).reshape(shape) for row in ranked] for given in names}
    figure = surprise_maps(images, rows, captions, title=f"The least plausible rows ({plan.rank_by} of the other folds): how surprising each pixel is",
                           note="Given the pixels before it in the joint's order the surprises of an image sum to -log p(x); "
                                "given all others each pixel is judged by itself.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def screen(plan: Plan, units: Units, written: Sequence[Path]) -> RenderableType:
    """One screen."""
    return Group(_said(plan, units), Text(f"Written to {written[0].parent}/: {', '.join(path.name for path in written)}"))


def _said(plan: Plan, units: Units) -> RenderableType:
    few = [f"{row['row']}" + ("" if row["label"] is None else f" (class {row['label']})") + f" {row['log_p']:.1f}" for row in _ranked(plan, units)[:NAMED]]
    reasons = {unit["model"]: unit["reason"] for unit in units if "reason" in unit}
    over = f"mean over the {len(plan.classes or ())} classes left out of training ± their standard deviation" if plan.classes else "all rows"
    units_of = "" if plan.data.num_states else " All in standard deviations of each column, so that cells may change places."
    return Group(Text(f"{plan.data}\nAUROC, %, of strange rows against ordinary ones that no fit has seen ({over})", style="bold"), _table(plan, units),
                 *(Text(f"{name}: {reason}") for name, reason in reasons.items()),
                 Text("Strange are: " + "; ".join(f"{name}, {_label(name)}" for name in plan.kinds) + "." + units_of),
                 *(Text(f"\n{line}") for line in failures(units)),
                 Text(f"\nLeast plausible, log p by the {plan.rank_by} of the other folds: row {', '.join(few)}."))


def _label(kind: str) -> str:
    return "rows of the class left out" if kind == HELD_OUT else KINDS[kind].label


def _table(plan: Plan, units: Units) -> Table:
    found = summary(units)
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    shown.add_column("model", no_wrap=True)
    for kind in plan.kinds:
        shown.add_column(kind, justify="right", no_wrap=True)
    first = plan.kinds[0]
    for model in sorted(found, key=lambda name: (name in RIVALS, -found[name][first][0])):
        line = [found[model][kind] for kind in plan.kinds]
        shown.add_row(model, *(f"{100 * mean:.1f}" + (f"±{100 * spread:.0f}" if plan.classes else "") for mean, spread in line))
    return shown


def failures(units: Units) -> Iterator[str]:
    """Sentences: what joints hold for more plausible than ordinary rows, and where a rival is ahead of them all."""
    found = summary(units)
    joints, rivals = ([name for name in found if (name in RIVALS) is rival] for rival in (False, True))
    for kind in found[joints[0]] if joints else ():
        fooled = [unit for unit in units if unit["model"] in joints and unit.get("auroc", {}).get(kind, 1.0) < 0.5]
        if fooled:
            yield _fooled(kind, fooled)
        best = max(joints, key=lambda name: found[name][kind][0])
        first = max(rivals, key=lambda name: found[name][kind][0], default=best)
        if found[first][kind][0] > found[best][kind][0]:
            yield f"On '{kind}' {first} ({100 * found[first][kind][0]:.1f} %) is ahead of every joint (the best is {best}, {100 * found[best][kind][0]:.1f} %)."


def _fooled(kind: str, fooled: Units) -> str:
    worst: dict[str, Mapping[str, Any]] = {}
    for unit in fooled:
        name = unit["model"]
        worst[name] = min(worst.get(name, unit), unit, key=lambda one: one["auroc"][kind])
    said = ", ".join(f"{name} {100 * unit['auroc'][kind]:.1f} %" + ("" if unit["class"] is None or kind != HELD_OUT else f" without {unit['class']}")
                     for name, unit in worst.items())
    both = [100 * unit["two_sided"][kind] for unit in worst.values()]
    return (f"A likelihood fails on '{kind}', which it holds for more plausible than ordinary rows: {said}. How far log p is from its median over "
            f"held-back rows, on either side, gives {min(both):.1f} to {max(both):.1f} %.")
