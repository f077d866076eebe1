r"""What came out of a comparison: a table for each number of rows, a CSV file and a picture; and the command that makes them."""

import io

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from matplotlib.figure import Figure

from pyro_ar.checks import require
from pyro_ar.comparison import Difference, paired_difference
from pyro_ar.experiments.comparison import Plan, estimate_seconds, run
from pyro_ar.experiments.states import load_split
from pyro_ar.experiments.store import Results, write_atomically, write_csv
from pyro_ar.plots import Series, curves

__all__ = ["Summary", "legend_in_columns", "run_compare", "summarise"]

LONG = 300.0  # seconds


class Summary(NamedTuple):
    """A model at one number of training rows.

    Attributes:
        model: Its name.
        rows: Training rows.
        nats: Held-out nats per row, lower is better: the mean of -`held_out_score`.
        error: Its standard error over the test rows.
        worse_by: Than the best model at this number of rows, `paired_difference`; 0 for the best.
        parameters: Free ones.
        log_evidence: Of the training rows, `TableModel.log_evidence`; None for point estimates.
        probability: Among the tables, by their evidence.
        seconds: To fit and to score.
    """

    model: str
    rows: int
    nats: float
    error: float
    worse_by: Difference
    parameters: int
    log_evidence: float | None
    probability: float | None
    seconds: float


def summarise(units: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """Sorted by rows, best model first."""
    found = []
    for rows in sorted({unit["rows"] for unit in units}):
        some = sorted((u for u in units if u["rows"] == rows), key=lambda u: u["nats"])
        best = torch.tensor(some[0]["scores"], dtype=torch.float64)
        tables = [u for u in some if "log_evidence" in u]
        shares = torch.tensor([u["log_evidence"] for u in tables], dtype=torch.float64).softmax(0).tolist()
        probability = {u["model"]: p for u, p in zip(tables, shares, strict=True)}
        for u in some:
            gap = paired_difference(best, torch.tensor(u["scores"], dtype=torch.float64))
            found.append(Summary(u["model"], rows, u["nats"], u["error"], gap, u["parameters"], u.get("log_evidence"),
                                 probability.get(u["model"]), u["seconds"]))
    return found


def _text(found: Sequence[Summary], rows: int) -> str:
    head = ["model", "nats/row", "se", "worse by", "paired se", "parameters", "log evidence", "p(table)", "seconds"]
    lines = [head]
    for s in (s for s in found if s.rows == rows):
        first = s.worse_by.mean == 0 and s.worse_by.error == 0
        lines.append([s.model, f"{s.nats:.4f}", f"{s.error:.4f}", "best" if first else f"{s.worse_by.mean:.4f}", "" if first else f"{s.worse_by.error:.4f}",
                      f"{s.parameters:,}", "-" if s.log_evidence is None else f"{s.log_evidence:.1f}",
                      "-" if s.probability is None else f"{s.probability:.3f}", f"{s.seconds:.1f}"])
    wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, wide, strict=True))) for line in lines)


def _draw(plan: Plan, found: Sequence[Summary]) -> Figure:
    sizes = sorted({s.rows for s in found})
    lines = {f"{m} ({some[-1].parameters:,})": some for m in plan.models or () if (some := [s for s in found if s.model == m])}
    panels = {
        "Held-out nats per row (lower is better)": {name: Series([s.nats for s in some], [s.error for s in some]) for name, some in lines.items()},
        "Behind the best of these rows, nats (paired errors)": {
            name: Series([s.worse_by.mean for s in some], [s.worse_by.error for s in some]) for name, some in lines.items()},
    }
    figure = curves(panels, sizes, x_label="training rows", title=f"Which factorisation, given this much data? {plan.name}",
                    note=f"Brackets: free parameters. {len(plan.test)} test rows; bars are one standard error.")
    figure.set_size_inches(11.5, 6.2)
    nats = sorted(s.nats for s in found)
    behind = sorted(s.worse_by.mean for s in found)
    # A model far behind would press all others together; its line leaves the picture.
    spread = nats[len(nats) // 2] - nats[0]
    top = max(s.nats for s in found if s.model == _simplest(found)) + 0.4 * spread
    most = behind[round(0.8 * (len(behind) - 1))]  # a fifth of the points may lie above
    limits = ((nats[0] - 0.1 * spread, min(top, nats[-1] + 0.1 * spread)), (-0.05 * most, 1.2 * most + 1e-3))
    for axis, limit in zip(figure.axes, limits, strict=True):
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{s:,}" for s in sizes])
        axis.minorticks_off()
        axis.set_ylim(*limit)
    legend_in_columns(figure, 5)
    return figure


def legend_in_columns(figure: Figure, columns: int, title: str | None = None) -> None:
    """Set the legends anew, with fewer columns: names with brackets are too wide for the usual six."""
    for old in list(figure.legends):
        handles = [h for h in old.legend_handles if h is not None]
        names, note = [t.get_text() for t in old.get_texts()], old.get_title().get_text()
        old.remove()
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, title=title or note, title_fontsize=9)


def _simplest(found: Sequence[Summary]) -> str:
    return min(found, key=lambda s: s.parameters).model


def run_compare(data: str, *, label: str | None = None, out: Path = Path("compare"), sizes: tuple[int, ...] | None = None,
                models: tuple[str, ...] | None = None, rows: int | None = None, test_share: float = 0.2, steps: int = 3000, seed: int = 0,
                fresh: bool = False, say: Callable[[str], None] = print) -> list[Summary]:
    """The command `pyro-ar compare`: held-out nats per row against training rows, as a table, a CSV file and a picture.

    ============  =========  =======================================================================================
    option        default    meaning
    ============  =========  =======================================================================================
    --data        (needed)   a set under PYRO_AR_DATA such as debd/nltcs, or a file of states: CSV, npz, ...
    --label       none       a column of the file that is no variable, by name or number
    --out         compare    folder of the results; an interrupted run goes on from what it holds
    --sizes       25,100,..  numbers of training rows, separated by commas
    --models      all        some of `MODELS`, separated by commas
    --rows        all        use the first rows of the training part only
    --test-share  0.2        of the rows, held out, where the set has no test part of its own
    --steps       3000       of training of each neural model, at most
    --seed        0          of the order of the rows, and of the neural models
    --fresh       no         start over, overwriting what the folder holds
    ============  =========  =======================================================================================

    Args:
        data: See above, as all the others.
        label: See above.
        out: See above.
        sizes: See above.
        models: See above.
        rows: See above.
        test_share: See above.
        steps: See above.
        seed: See above.
        fresh: See above.
        say: Where the lines of text go.

    Raises:
        ValueError: Bad options, or data that are no states.
        FileNotFoundError: No such data.
    """
    require(seed >= 0, "seed must be 0 or more", seed)
    notes: list[str] = []
    name, train, test = load_split(data, label=label, test_share=test_share, seed=seed, say=notes.append)
    require(rows is None or rows >= 10, "rows must be 10 or more", rows)
    plan = Plan(name, train[:rows], test, sizes, models, seed, steps)
    results = Results.open(Path(out) / "results.json", plan.settings(), fresh=fresh)
    done = [(u["rows"], u["model"]) for u in results.units]
    head = f"{name}: {len(plan.train)} training rows, {len(test)} test rows, {len(plan.num_states)} variables of at most {max(plan.num_states)} states"
    say("\n".join([head, *notes]))
    if plan.too_long and models is None:
        say(f"left out, they have more memory than {len(plan.num_states)} variables can use: {', '.join(plan.too_long)}")
    if plan.same and models is None:
        say(f"left out, over {len(plan.num_states)} variables it is the full table: {', '.join(plan.same)}")
    if plan.left_out:
        say(f"left out, their tables would not fit into memory: {', '.join(plan.left_out)}")
    cost = estimate_seconds(plan, done)
    say(f"{len(plan.units) - len(done)} of {len(plan.units)} fits to do, at most about {_duration(cost)} on this machine; results go to {out}/"
        + ("; fewer --steps, --sizes or --models take less, and Ctrl-C loses one fit at most" if cost > LONG else ""))
    for i, unit in enumerate(run(plan, results)):
        if (unit["rows"], unit["model"]) not in done:
            say(f"[{i + 1}/{len(plan.units)}] {unit['rows']} rows, {unit['model']}: {unit['nats']:.4f} ± {unit['error']:.4f} nats, {unit['seconds']:.1f} s")
    found = summarise(results.units)
    _write(plan, found, Path(out))
    for size in plan.sizes or ():
        say(f"\n{size} training rows\n{_text(found, size)}")
    say("\nnats/row: mean of -log p of the test rows, lower is better. worse by: than the best, over the same rows. log evidence, p(table): of the training "
        f"rows; it is the sum of the scores of each row given those before it, so it also charges what was not yet learnt, and point estimates have none.\nWritten: {out}/results.json, results.csv, curve.png")
    return found


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _write(plan: Plan, found: Sequence[Summary], folder: Path) -> None:
    write_csv(folder / "results.csv", [
        {"rows": s.rows, "model": s.model, "nats": round(s.nats, 6), "se": round(s.error, 6), "worse_by": round(s.worse_by.mean, 6),
         "paired_se": round(s.worse_by.error, 6), "parameters": s.parameters, "log_evidence": s.log_evidence, "probability": s.probability,
         "seconds": s.seconds} for s in found])
    buffer = io.BytesIO()
    _draw(plan, found).savefig(buffer, format="png")
    write_atomically(folder / "curve.png", buffer.getvalue())
