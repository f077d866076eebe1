r"""What came out of a comparison: a table for each number of rows, a CSV file and a picture; and the command that makes them."""

import io
import textwrap

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from matplotlib.figure import Figure

from pyro_ar.checks import require
from pyro_ar.comparison import Difference, paired_difference
from pyro_ar.experiments.compare.pictures import by_size
from pyro_ar.experiments.compare.run import Plan, estimate_seconds, run
from pyro_ar.experiments.compare.screen import WIDTH, aligned, screen
from pyro_ar.experiments.states import load_split
from pyro_ar.experiments.store import Results, write_atomically, write_csv
from pyro_ar.plots.style import Series

__all__ = ["Summary", "run_compare", "summarise"]

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
    return "\n".join(aligned(lines))


def _draw(plan: Plan, found: Sequence[Summary]) -> Figure:
    sizes = sorted({s.rows for s in found})
    lines = {m: some for m in plan.models or () if (some := [s for s in found if s.model == m])}
    behind = "Behind the best of these rows, nats (paired errors)"
    panels = {
        "Held-out nats per row (lower is better)": {m: Series([s.nats for s in some], [s.error for s in some]) for m, some in lines.items()},
        behind: {m: Series([s.worse_by.mean for s in some], [s.worse_by.error for s in some]) for m, some in lines.items()},
    }
    labels = {m: f"{m} ({some[-1].parameters:,})" for m, some in lines.items()}
    return by_size(panels, sizes, labels, title=f"Which factorisation, given this much data? {plan.name}", scales={behind: "from zero"},
                   note=f"Brackets: free parameters. {len(plan.test)} test rows; bars are one standard error, side by side at each number of rows.")


def run_compare(data: str, *, label: str | None = None, out: Path = Path("compare"), sizes: tuple[int, ...] | None = None,
                models: tuple[str, ...] | None = None, rows: int | None = None, test_share: float = 0.2, steps: int = 3000, seed: int = 0,
                fresh: bool = False, keep_old_results: bool = False, full: bool = False,
                say: Callable[[str], None] = print) -> list[Summary]:
    """The command `pyro-ar compare`: held-out nats per row against training rows, as a table, a CSV file and a picture.

    ==================  =========  =======================================================================================
    option              default    meaning
    ==================  =========  =======================================================================================
    --data              (needed)   a set under PYRO_AR_DATA such as debd/nltcs, or a file of states: CSV, npz, ...
    --label             none       a column of the file that is no variable, by name or number
    --out               compare    folder of the results; an interrupted run goes on from what it holds
    --sizes             25,100,..  numbers of training rows, separated by commas
    --models            all        some of `MODELS`, separated by commas
    --rows              all        use the first rows of the training part only
    --test-share        0.2        of the rows, held out, where the set has no test part of its own
    --steps             3000       of training of each neural model, at most
    --seed              0          of the order of the rows, and of the neural models
    --fresh             no         start over, overwriting what the folder holds
    --full              no         show all tables, which are in report.txt too
    --keep-old-results  no         go on with results that other code of this library wrote
    ==================  =========  =======================================================================================

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
        keep_old_results: See above.
        full: See above.
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
    results = Results.open(Path(out) / "results.json", plan.settings(), fresh=fresh, keep_old_results=keep_old_results)
    notes += [results.note] if results.note else []
    done = [(u["rows"], u["model"]) for u in results.units]
    head = f"{name}: {len(plan.train)} training rows, {len(test)} test rows, {len(plan.num_states)} variables of at most {max(plan.num_states)} states"
    about = [head, *notes, *_left_out(plan, models is None)]
    say("\n".join([head, *notes]))
    for line in about[1 + len(notes):]:
        say(line)
    cost = estimate_seconds(plan, done)
    say(f"{len(plan.units) - len(done)} of {len(plan.units)} fits to do, at most about {_duration(cost)} on this machine; results go to {out}/"
        + ("; fewer --steps, --sizes or --models take less, and Ctrl-C loses one fit at most" if cost > LONG else ""))
    for i, unit in enumerate(run(plan, results)):
        if (unit["rows"], unit["model"]) not in done:
            say(f"[{i + 1}/{len(plan.units)}] {unit['rows']} rows, {unit['model']}: {unit['nats']:.4f} ± {unit['error']:.4f} nats, {unit['seconds']:.1f} s")
    found = summarise(results.units)
    tables = [f"{size} training rows\n{_text(found, size)}" for size in plan.sizes or ()]
    report = "\n\n".join(["\n".join(about), *tables, textwrap.fill(EXPLAINED, WIDTH)])
    _write(plan, found, Path(out), report)
    if full:
        say("\n" + report)
    say(screen(found, len(test), Path(out), WRITTEN))
    return found


EXPLAINED = ("nats/row: mean of -log p of the test rows, of their visible cells where some are hidden; lower is better. worse by: than the best, over the "
             "same rows. parameters: the free ones of the class, once: averages over the strength of a prior add none. log evidence, p(table): of the "
             "training rows; it is the sum of the scores of each row given those before it, so it also charges what was not yet learnt, and point "
             "estimates have none.")
WRITTEN = ("report.txt", "results.json", "results.csv", "curve.png")


def _left_out(plan: Plan, chosen: bool) -> list[str]:
    """What a reader must know about the models, a sentence each."""
    count, said = len(plan.num_states), []
    if chosen:
        for names, why in ((plan.too_long, f"they have more memory than {count} variables can use"),
                           (plan.same, f"over {count} variables it is the full table"),
                           (plan.left_out, "their tables would not fit into memory"),
                           (plan.blind, "they learn from complete rows only, and cells of these are hidden")):
            said += [f"left out, {why}: {', '.join(names)}"] if names else []
    if plan.hidden:
        said.append("tables are fitted by EM, which leaves them no evidence; scores are log p of what is visible")
    return said


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _write(plan: Plan, found: Sequence[Summary], folder: Path, report: str) -> None:
    write_atomically(folder / "report.txt", report + "\n")
    write_csv(folder / "results.csv", [
        {"rows": s.rows, "model": s.model, "nats": round(s.nats, 6), "se": round(s.error, 6), "worse_by": round(s.worse_by.mean, 6),
         "paired_se": round(s.worse_by.error, 6), "parameters": s.parameters, "log_evidence": s.log_evidence, "probability": s.probability,
         "seconds": s.seconds} for s in found])
    buffer = io.BytesIO()
    _draw(plan, found).savefig(buffer, format="png")
    write_atomically(folder / "curve.png", buffer.getvalue())
