r"""What came out of a comparison: one table and one picture for any mix of joints, scored on the same rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyro_ar.checks import counted, one_line
from pyro_ar.comparison.predictive import Loo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["METHODS", "Comparison", "Row"]

METHODS = {
    "LOO, exact": "log p(row | all other rows), in closed form",
    "PSIS-LOO": "log p(row | all other rows), from posterior draws (in brackets: made how); not to be trusted where Pareto k is bad",
    "cross-validation": "log p(row | rows of the other folds): fits to fewer rows, so it is slightly below leave-one-out",
    "held out": "log p(row) under a joint that was fitted to other rows",
}


@dataclass(frozen=True)
class Row:
    """A model of the table.

    Attributes:
        name: As given.
        method: How its rows were scored; see `METHODS`.
        score: Mean log score, in nats per row: of `Comparison.pointwise`.
        error: Its standard error.
        difference: To the best model, `paired_difference` of the same rows: 0 or negative.
        difference_error: Standard error of the differences.
        weight: In the best mixture: `stacking_weights`.
        parameters: Free parameters; None if the model does not say.
        bad_k: Rows whose PSIS-LOO is not to be trusted, `Loo.bad`; None where there is no such thing.
        max_k: The largest Pareto shape.
        log_evidence: In nats, of all rows: `TableModel.log_evidence` or `Posterior.evidence`; None where it is not to be had.
        evidence_error: 0 where exact.
    """

    name: str
    method: str
    score: float
    error: float
    difference: float
    difference_error: float
    weight: float
    parameters: int | None
    bad_k: int | None = None
    max_k: float | None = None
    log_evidence: float | None = None
    evidence_error: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """Best model first. `str` gives the table, `figure()` the picture, `rows` the numbers.

    Attributes:
        rows: One per model.
        pointwise: Log score of each row of the data by model, `(N,)` in nats.
        loos: Of the models that have posterior draws.
        notes: What a reader should know.
    """

    rows: tuple[Row, ...]
    pointwise: Mapping[str, Tensor]
    loos: Mapping[str, Loo] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        """The name of the model of the largest score."""
        return self.rows[0].name

    @property
    def weights(self) -> dict[str, float]:
        """Stacking weights by name, for `average`."""
        return {row.name: row.weight for row in self.rows}

    def __getitem__(self, name: str) -> Row:
        found = {row.name: row for row in self.rows}
        if name not in found:
            raise KeyError(f"no model {name!r}; there are {', '.join(found)}")
        return found[name]

    def __repr__(self) -> str:
        count = len(next(iter(self.pointwise.values()), ()))
        return one_line("Comparison", f"{counted(len(self.rows), 'model')} on {counted(count, 'row')}", f"best: {self.best}", "print it for the table")

    def __str__(self) -> str:
        head = ["model", "nats/row", "se", "difference", "paired se", "weight", "parameters", "log evidence", "Pareto k", "method"]
        lines = [head] + [_cells(row) for row in self.rows]
        wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = ["  ".join(c.ljust(w) if i in (0, 9) else c.rjust(w) for i, (c, w) in enumerate(zip(line, wide, strict=True))).rstrip() for line in lines]
        return "\n".join([*text, "", *self.notes])

    def figure(self) -> "Figure":
        """Differences to the best model with their paired errors, one line each, the best on top."""
        from matplotlib.figure import Figure  # slow to import, and only this picture needs it

        figure = Figure(figsize=(8.5, 1.6 + 0.42 * len(self.rows)), dpi=130, layout="constrained")
        axis = figure.subplots()
        styles = dict(zip(METHODS, (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#000000", "D")), strict=True))
        drawn: dict[str, Any] = {}
        for at, row in enumerate(self.rows):
            kind = next(m for m in METHODS if row.method.startswith(m))
            colour, marker = styles[kind]
            drawn[kind] = axis.errorbar(row.difference, at, xerr=row.difference_error, color=colour, marker=marker, capsize=3, linestyle="none")
        axis.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        labels = [row.name + ("" if row.parameters is None else f"  ({row.parameters:,} parameters)") for row in self.rows]
        axis.set_yticks(range(len(self.rows)), labels)
        axis.set_ylim(len(self.rows) - 0.5, -0.5)
        axis.set_xlabel("nats per row, difference to the best model (bars: one paired standard error)")
        axis.grid(visible=True, axis="x", color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        figure.legend(list(drawn.values()), list(drawn), loc="outside lower center", ncols=len(drawn), frameon=False)
        return figure


def _cells(row: Row) -> list[str]:
    evidence = "-" if row.log_evidence is None else f"{row.log_evidence:.2f}" + (f" ±{row.evidence_error:.2f}" if row.evidence_error else "")
    k = "-" if row.bad_k is None else f"{row.bad_k} bad, max {row.max_k:.2f}"
    first = row.difference == 0 and row.difference_error == 0
    gap = ["0", ""] if first else [f"{row.difference:.4f}", f"{row.difference_error:.4f}"]
    parameters = "-" if row.parameters is None else f"{row.parameters:,}"
    return [row.name, f"{row.score:.4f}", f"{row.error:.4f}", *gap, f"{row.weight:.2f}", parameters, evidence, k, row.method]
