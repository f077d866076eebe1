r"""Which factorisation should be believed, given this much data? Held-out nats per row against training rows.

For each number of training rows (nested: more rows contain the fewer) and each model: fit, and score the same test rows. The
tables average over the strength of their prior by its evidence; the neural models stop early on a tenth of their rows. Evidence and the
probabilities of the tables' structures, which need no test rows, stand beside the scores.
"""

import hashlib
import math
import time

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from matplotlib.figure import Figure
from torch import Generator, Tensor

from pyro_ar import data as _data
from pyro_ar.checks import require
from pyro_ar.comparison import Difference, NeuralModel, TableModel, held_out_score, paired_difference, table_models
from pyro_ar.comparison.recipes import fit_recipe
from pyro_ar.experiments.store import Results, write_atomically, write_csv
from pyro_ar.families import FVSBN, NADE, Family, OrderlessNADE
from pyro_ar.outputs import Bernoulli, Categorical
from pyro_ar.plots import Series, curves
from pyro_ar.tables.counts import check_data

__all__ = ["MODELS", "Plan", "Summary", "estimate_seconds", "load_split", "run", "run_compare", "summarise"]

STRENGTHS = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
MAX_STATES = 256  # of a variable, before its values count as real numbers
LONG = 300.0  # seconds
SECONDS_PER_EPOCH = 0.03  # of the training engine: validation, and a checkpoint


class Neural(NamedTuple):
    """A neural family of the line-up.

    Attributes:
        make: From the number of variables and of states to a fresh family.
        lr: Adam's step size.
    """

    make: Callable[[int, int], Family]
    lr: float


def _output(states: int) -> Any:
    return Bernoulli() if states == 2 else Categorical(states)


TABLES = ("independent", "Markov chain 1", "Markov chain 2", "Markov chain 3", "Chow-Liu tree", "full table")
NEURAL: dict[str, Neural] = {
    "FVSBN": Neural(lambda n, k: FVSBN(n, _output(k)), 1e-2),
    "NADE": Neural(lambda n, k: NADE(n, hidden=64, output=_output(k)), 5e-3),
    "any-order NADE": Neural(lambda n, k: OrderlessNADE(n, hidden=64, output=_output(k)), 5e-3),
}
MODELS = (*TABLES, *NEURAL)


# The plan.


@dataclass(frozen=True)
class Plan:
    """What is to be done; checked when made.

    Args:
        name: Of the data.
        train: Training rows, `(N, n)` states.
        test: Test rows.
        sizes: Numbers of training rows; None: 25, four times as many, ..., all.
        models: Names from `MODELS`; None: all whose tables fit into memory.
        seed: Of the order of the training rows, and of the neural models.
        steps: Of training of each neural model, at most.
        batch_size: Rows per step.

    Raises:
        ValueError: No states, no rows, an unknown model or one that does not fit, or sizes beyond the rows.
    """

    name: str
    train: Tensor
    test: Tensor
    sizes: tuple[int, ...] | None = None
    models: tuple[str, ...] | None = None
    seed: int = 0
    steps: int = 4000
    batch_size: int = 128

    def __post_init__(self) -> None:
        require(self.train.ndim == 2 and self.test.ndim == 2 and self.train.shape[1] == self.test.shape[1] and len(self.test) >= 2,
                f"{self.name}: wanted training rows and 2 or more test rows of as many variables", self.train, self.test)
        require(min(self.steps, self.batch_size) >= 1, "steps and batch_size must be 1 or more", self.steps, self.batch_size)
        require(self.seed >= 0, "seed must be 0 or more", self.seed)
        most = max(self.num_states)
        require(most <= MAX_STATES, f"{self.name}: wanted states, at most {MAX_STATES} of a variable (bin real numbers first)", most)
        n = len(self.train)
        sizes = self.sizes or (*(s for s in (25 * 4**i for i in range(20)) if 1.5 * s < n), n)
        require(all(10 <= s <= n for s in sizes) and len(set(sizes)) == len(sizes), f"sizes must be different numbers from 10 to the {n} training rows", sizes)
        object.__setattr__(self, "sizes", tuple(sorted(sizes)))
        fits = table_models(self.num_states)
        known = [name for name in MODELS if name in fits or name in NEURAL]
        for name in self.models or ():
            require(name in MODELS, f"models must be some of {', '.join(MODELS)}", name)
            require(name not in self.too_long, f"{name} has more memory than {len(self.num_states)} variables can use: give a shorter chain")
            require(name in known, f"{name} does not fit: its tables would have {math.prod(map(float, self.num_states)):.1e} cells")
        object.__setattr__(self, "models", tuple(name for name in known if self.models is None or name in self.models))

    @property
    def num_states(self) -> tuple[int, ...]:
        """States of each variable, over training and test rows: a category is known even if the training part lacks it."""
        return check_data(torch.cat([self.train, self.test]), None)[1]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Models whose tables do not fit into memory."""
        return tuple(name for name in TABLES if name not in table_models(self.num_states) and name not in self.too_long)

    @property
    def too_long(self) -> tuple[str, ...]:
        """Chains with more memory than there are variables before the last."""
        return tuple(name for name in TABLES if name.startswith("Markov chain") and int(name.split()[-1]) >= len(self.num_states))

    @property
    def units(self) -> list[tuple[int, str]]:
        """(rows, model), model fastest."""
        return [(rows, model) for rows in self.sizes or () for model in self.models or ()]

    def rows(self, count: int) -> Tensor:
        """The first rows of a shuffle, so that more rows contain the fewer."""
        return self.train[torch.randperm(len(self.train), generator=Generator().manual_seed(self.seed))[:count]]

    def recipe(self, model: str, rows: int) -> Any:
        """How the model is made from so many rows: a `TableModel` or a `NeuralModel`."""
        sizes = self.num_states
        if model in TABLES:
            return table_models(sizes, STRENGTHS)[model].with_states(sizes)
        make, lr = NEURAL[model]
        batch = max(8, min(self.batch_size, rows // 8))  # an epoch of one step would be mostly bookkeeping
        epochs = max(1, self.steps // math.ceil(0.9 * rows / batch))
        options = {"epochs": min(epochs, 500), "batch_size": batch, "lr": lr, "patience": max(10, min(epochs, 500) // 5), "accelerator": "cpu",
                   "seed": self.seed}
        return NeuralModel(lambda: make(len(sizes), max(sizes)), options, self.seed)

    def settings(self) -> dict[str, Any]:
        """What must be the same for results to belong together."""
        digest = hashlib.sha256(self.train.double().numpy().tobytes() + b"|" + self.test.double().numpy().tobytes())
        return {
            "experiment": "compare",
            "data": {"name": self.name, "train": len(self.train), "test": len(self.test), "num_states": max(self.num_states), "sha256": digest.hexdigest()[:16]},
            "sizes": self.sizes, "models": self.models, "seed": self.seed, "strengths": STRENGTHS,
            "training": {"steps": self.steps, "batch_size": self.batch_size, "lr": {name: NEURAL[name].lr for name in NEURAL}},
        }


def load_split(name_or_path: str, *, label: str | int | None = None, test_share: float = 0.2, seed: int = 0,
               say: Callable[[str], None] = lambda line: None) -> tuple[str, Tensor, Tensor]:
    """Name, training and test rows: of a named set its own splits, of a file a random share of the rows.

    The values of each column become 0, 1, ... in their order, over training and test rows, so no state is counted that never occurs.

    Args:
        name_or_path: As in `par.data.load`.
        label: A column that is no variable.
        test_share: Of a file without splits.
        seed: Of the random share.
        say: Where it goes which line was taken for names, and which columns were recoded.

    Raises:
        ValueError: Values that are no whole numbers, more than `MAX_STATES` different ones in a column, or too few rows.
        FileNotFoundError: As in `par.data.load`.
    """
    train = _data.load(name_or_path, "train", label=label)
    require(bool((train.x == train.x.round()).all()), f"{train.name}: wanted states, whole numbers; came real numbers (bin them first)")
    names = _names_of(name_or_path, say)
    if train.name.endswith(" train"):
        test = _data.load(name_or_path, "test")
        x, y = _recoded(train.name, train.x, test.x, names, say)
        return train.name.removesuffix(" train"), x, y
    require(0 < test_share < 1, "test_share must lie between 0 and 1", test_share)
    order = torch.randperm(len(train.x), generator=Generator().manual_seed(seed))
    cut = round(test_share * len(order))
    require(cut >= 2 and len(order) - cut >= 10, f"{train.name}: wanted at least 10 training rows and 2 test rows", f"{len(order)} rows")
    if label is not None:
        names = None  # their numbers are no longer those of the variables
    x, y = _recoded(train.name, train.x[order[cut:]], train.x[order[:cut]], names, say)
    return train.name, x, y


def _names_of(path: str, say: Callable[[str], None]) -> list[str] | None:
    """The names that the first line of a CSV file gives to its columns, said aloud, since it might be a row."""
    if Path(path).suffix.lower() not in (".csv", ".tsv") and not path.lower().endswith((".csv.gz", ".tsv.gz")):
        return None
    names = _data.read_csv(path)[0]
    if names is not None:
        say(f"first line taken for names of the columns: {_shortened(names)}")
    return names


def _recoded(name: str, train: Tensor, test: Tensor, names: list[str] | None, say: Callable[[str], None]) -> tuple[Tensor, Tensor]:
    """The same with the values of each column 0, 1, ... in their order."""
    both = torch.cat([train, test])
    require(bool((both == both.round()).all()), f"{name}: wanted states, whole numbers; came real numbers (bin them first)")
    columns, changed = [], []
    for i, column in enumerate(both.T):
        values, codes = column.unique(return_inverse=True)
        called = names[i] if names else str(i)
        require(len(values) <= MAX_STATES, f"{name}: wanted states, at most {MAX_STATES} different values of a variable (bin them first); column {called} has",
                len(values))
        if not torch.equal(codes.to(column.dtype), column):
            changed.append(called)
        columns.append(codes)
    if changed:
        say(f"values recoded to 0, 1, ... in their order in {len(changed)} columns: {_shortened(changed)}")
    coded = torch.stack(columns, -1).to(both.dtype)
    return coded[: len(train)], coded[len(train):]


def _shortened(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def estimate_seconds(plan: Plan, done: Sequence[tuple[int, str]] = ()) -> float:
    """How long the units take that are still to do, from a few timed steps of each neural model, and a sum over table cells."""
    seconds = 0.0
    n, most = len(plan.num_states), max(plan.num_states)
    step: dict[str, float] = {}
    for rows, model in plan.units:
        if (rows, model) in done:
            continue
        if model in TABLES:
            cells = table_models(plan.num_states)[model].num_parameters(plan.num_states)
            seconds += len(STRENGTHS) * (1e-7 * cells + 3e-8 * rows * n * (n if model == "Chow-Liu tree" else 1)) + 0.2
            continue
        if model not in step:
            step[model] = _seconds_per_step(NEURAL[model].make(n, most), plan.train[: plan.batch_size])
        options = plan.recipe(model, rows).options
        seconds += options["epochs"] * (math.ceil(0.9 * rows / options["batch_size"]) * step[model] + SECONDS_PER_EPOCH)
    return seconds


def _seconds_per_step(family: Family, x: Tensor, repeats: int = 5) -> float:
    with torch.random.fork_rng(devices=[]):
        optimiser = torch.optim.AdamW(family.parameters())
        start = 0.0
        for i in range(repeats + 1):
            if i == 1:  # the first one warms up
                start = time.perf_counter()
            optimiser.zero_grad()
            (-family.training_log_prob(x).mean()).backward()
            optimiser.step()
    return (time.perf_counter() - start) / repeats + 2e-3  # what the training engine adds


# The work.


def run(plan: Plan, results: Results) -> Iterator[dict[str, Any]]:
    """Do the units that are still to do, keep each on disk, and yield it; done ones are yielded as they are."""
    for rows, model in plan.units:
        unit = results.find(rows=rows, model=model)
        if unit is None:
            unit = _one_unit(plan, rows, model)
            results.add(unit)
        yield unit


def _one_unit(plan: Plan, rows: int, model: str) -> dict[str, Any]:
    x, recipe = plan.rows(rows), plan.recipe(model, rows)
    start = time.perf_counter()
    score = held_out_score(fit_recipe(model, recipe, x), plan.test, what=model)
    unit = {"rows": rows, "model": model, "nats": -score.mean().item(), "error": score.std().item() / math.sqrt(len(score)),
            "parameters": recipe.num_parameters(plan.num_states), "scores": [round(s, 5) for s in score.tolist()]}
    if isinstance(recipe, TableModel):
        unit["log_evidence"] = recipe.log_evidence(x).item()
    return unit | {"seconds": round(time.perf_counter() - start, 2)}


# What came out.


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
    lines = {f"{m} ({some[0].parameters:,})": some for m in plan.models or () if (some := [s for s in found if s.model == m])}
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
    limits = ((nats[0] - 0.1 * spread, min(top, nats[-1] + 0.1 * spread)), (-0.05 * behind[len(behind) // 2], 1.3 * behind[len(behind) // 2] + 1e-3))
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
                models: tuple[str, ...] | None = None, rows: int | None = None, test_share: float = 0.2, steps: int = 4000, seed: int = 0,
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
    --steps       4000       of training of each neural model, at most
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
    import io

    write_csv(folder / "results.csv", [
        {"rows": s.rows, "model": s.model, "nats": round(s.nats, 6), "se": round(s.error, 6), "worse_by": round(s.worse_by.mean, 6),
         "paired_se": round(s.worse_by.error, 6), "parameters": s.parameters, "log_evidence": s.log_evidence, "probability": s.probability,
         "seconds": s.seconds} for s in found])
    buffer = io.BytesIO()
    _draw(plan, found).savefig(buffer, format="png")
    write_atomically(folder / "curve.png", buffer.getvalue())
