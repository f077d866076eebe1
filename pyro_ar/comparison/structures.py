r"""Which structure do the rows believe in? Evidence turned into probabilities and Bayes factors."""

import itertools
import math

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from torch import Tensor

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.budget import TURN
from pyro_ar.checks import counted, one_line, require
from pyro_ar.comparison.held_out import average, share_states
from pyro_ar.comparison.recipes import TableModel, chain_over
from pyro_ar.mixture import Mixture
from pyro_ar.tables import ChowLiuTree, FullTable, FullyIndependent, MarkovChain
from pyro_ar.tables.counts import check_data

__all__ = ["StructurePosterior", "structure_posterior", "table_models", "variable_orders"]

MAX_ORDERS = 7  # variables whose orders are all listed


@dataclass(frozen=True)
class StructurePosterior:
    r"""Probabilities of structures given rows, and what follows from them.

    Attributes:
        log_evidence: Log p(rows | structure) by name, in nats.
        probs: p(structure | rows) by name.
        models: The candidates, over all states of the rows.
        x: The rows.
    """

    log_evidence: Mapping[str, float]
    probs: Mapping[str, float]
    models: Mapping[str, TableModel]
    x: Tensor

    @property
    def best(self) -> str:
        """The most probable structure."""
        return max(self.probs, key=lambda name: self.probs[name])

    def log_bayes_factor(self, a: str, b: str) -> float:
        """Log of p(rows | a) / p(rows | b), in nats; the prior over structures does not enter."""
        for name in (a, b):
            require(name in self.log_evidence, f"no structure of this name; there are {', '.join(self.log_evidence)}", name)
        return self.log_evidence[a] - self.log_evidence[b]

    def predictive(self, x: Array) -> Mixture:
        """The evidence-weighted mixture of the predictive joints given the rows `x`, again a joint.

        Raises:
            ValueError: Other rows than the probabilities are of.
        """
        x = as_tensor(x)
        require(isinstance(x, Tensor) and x.shape == self.x.shape and bool((x.to(self.x.device) == self.x).all()),
                "predictive wants the rows that the probabilities are of: structure_posterior(x).predictive(x)", x, self.x)
        kept = {name: p for name, p in self.probs.items() if p > 1e-6}
        return average({name: self.models[name].fit(x) for name in kept}, kept)

    def __repr__(self) -> str:
        return one_line("StructurePosterior", f"{counted(len(self.probs), 'structure')} given {counted(len(self.x), 'row')}",
                        f"best: {self.best} (p = {self.probs[self.best]:.3f})", "print it for the table")

    def __str__(self) -> str:
        wide = max(len(name) for name in self.probs)
        lines = [f"{'structure':{wide}}  log evidence  probability"]
        for name in sorted(self.probs, key=lambda name: -self.log_evidence[name]):
            lines.append(f"{name:{wide}}  {self.log_evidence[name]:12.2f}  {self.probs[name]:11.4f}")
        return "\n".join(lines)


def structure_posterior(x: Array, models: Mapping[str, TableModel] | None = None, prior: Mapping[str, float] | None = None) -> StructurePosterior:
    r"""p(structure | rows) over table models, exact; trees are summed over *all* trees.

    Two names of one class (over n variables the chain of order n - 1 is the full table) have equal evidence, and so count twice.

    Args:
        x: `(N, n)` states.
        models: Candidates by name; `table_models` of these rows by default.
        prior: Their probabilities, unnormalised; equal by default.

    Raises:
        ValueError: No candidates, priors of different kinds or strengths (a concentration per cell beside an equivalent sample size, or two
            different sizes: their Bayes factors would compare priors, not structures), a prior that is not positive, or data that are no rows of states.

    Example:
        >>> x = torch.tensor([[0, 0], [1, 1]] * 20)
        >>> found = structure_posterior(x)
        >>> abs(found.log_bayes_factor("full table", "Markov chain 1")) < 1e-9  # over two variables they are one class
        True
        >>> found.probs["independent"] < 1e-9
        True
    """
    x = as_tensor(x)
    sizes = check_data(x, None)[1]
    models = table_models(sizes) if models is None else models
    require(len(models) > 0, "structure_posterior wants at least one candidate")
    require(all(isinstance(m, TableModel) for m in models.values()), "candidates must be TableModels: others have no exact evidence",
            [name for name, m in models.items() if not isinstance(m, TableModel)])
    kinds = {(m.concentration is None) for m in models.values()}
    require(len(kinds) == 1, "candidates must share one kind of prior: equivalent_sample_size, under which equal classes have equal evidence")
    strengths = {tuple(sorted(s or 0.0 for s in m.strengths)) for m in models.values()}
    require(len(strengths) == 1, "candidates must share the strength of their prior (one equivalent_sample_size for all): their Bayes factors would "
            "compare priors, not structures", *sorted(strengths))
    models = share_states(models, x)
    weights = {name: 1.0 for name in models} if prior is None else dict(prior)
    require(set(weights) == set(models) and all(w > 0 and math.isfinite(w) for w in weights.values()),
            "prior must give every candidate a positive number", weights)
    evidence = {name: model.log_evidence(x).item() for name, model in models.items()}
    joint = torch.tensor([evidence[name] + math.log(weights[name]) for name in models], dtype=torch.float64)
    return StructurePosterior(evidence, dict(zip(models, joint.softmax(0).tolist(), strict=True)), dict(models), x)


def table_models(num_states: Sequence[int], equivalent_sample_size: float | Sequence[float] = 1.0, orders: Sequence[int] = (1, 2, 3)) -> dict[str, TableModel]:
    """The usual candidates over variables with these numbers of states: independent, chains, trees, and the full table if it fits.

    Example:
        >>> list(table_models([2] * 16))
        ['independent', 'Markov chain 1', 'Markov chain 2', 'Markov chain 3', 'Chow-Liu tree', 'full table']
        >>> list(table_models([2] * 100, orders=[1]))
        ['independent', 'Markov chain 1', 'Chow-Liu tree']
    """
    sizes, strength = tuple(num_states), equivalent_sample_size
    found = {"independent": TableModel(FullyIndependent, strength)}
    for k in orders:
        if k < len(sizes) and max(math.prod(sizes[i:i + k + 1]) for i in range(len(sizes) - k)) <= TURN:
            found[f"Markov chain {k}"] = TableModel(MarkovChain, strength, structure={"order": k})
    found["Chow-Liu tree"] = TableModel(ChowLiuTree, strength)
    if math.prod(sizes) <= TURN:
        found["full table"] = TableModel(FullTable, strength)
    return found


def variable_orders(num_variables: int, k: int = 1, equivalent_sample_size: float | Sequence[float] = 1.0) -> dict[str, TableModel]:
    """Markov chains over all orders of the variables; of first-order chains one of each pair that are mirror images.

    Raises:
        ValueError: More than `MAX_ORDERS` variables: give some orders to `chain_over` instead.

    Example:
        >>> list(variable_orders(3))
        ['0-1-2', '0-2-1', '1-0-2']
    """
    require(2 <= num_variables <= MAX_ORDERS, f"all orders are listed for 2 to {MAX_ORDERS} variables; for more, give the orders in question to "
            "chain_over", num_variables)
    every = itertools.permutations(range(num_variables))
    return {"-".join(map(str, o)): chain_over(o, k, equivalent_sample_size) for o in every if k > 1 or o[0] < o[-1]}
