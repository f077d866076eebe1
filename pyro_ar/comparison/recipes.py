r"""Recipes: how a joint is made from rows, so that it can be made again from other rows (cross-validation, leave-one-out).

A recipe is anything with `fit(x)` that returns a `Joint`, or a plain function from rows to a `Joint`.
"""

import math

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from torch import Tensor

from pyro_ar.arrays import Array
from pyro_ar.checks import require
from pyro_ar.joint import Joint
from pyro_ar.mixture import Averaged
from pyro_ar.neural.family import Family
from pyro_ar.outputs import PerVariable
from pyro_ar.tables import BayesNet, ChowLiuTree, TableJoint, TablePosterior
from pyro_ar.tables.chow_liu import evidences_of_trees, log_spanning_trees
from pyro_ar.tables.counts import Block, block_counts, check_data, concentration_of, log_evidence_of, table_counts

__all__ = ["NeuralModel", "TableModel", "chain_over", "fit_recipe"]


@dataclass(frozen=True)
class TableModel:
    r"""A table class with symmetric Dirichlet priors: evidence, predictive joint and leave-one-out in closed form.

    With several strengths the model averages over them, each with equal prior: its evidence is the mean of theirs, and its predictive
    joint an `Averaged` mixture weighted by them. So the data choose the strength, and no row is scored by a choice that it took part in.

    What is counted as parameters, here and of the fitted joint alike, are the free entries of the class's tables, once: strengths and
    their weights follow from the prior and the rows.

    Attributes:
        joint: `FullTable`, `FullyIndependent`, `MarkovChain`, `BayesNet` or `ChowLiuTree`.
        equivalent_sample_size: Strength of the prior, spread over the cells of each table (BDeu); one or several.
        concentration: Instead, of every cell. A `MarkovChain` of order k draws its first k variables from one table, so they share one
            Dirichlet over their joint states; k tables of a `BayesNet` with the same edges have another prior, and another evidence.
            Under an equivalent sample size both are the same.
        num_states: As in `from_data`; None: the largest state seen plus one, at least 2.
        structure: `order` of a `MarkovChain`, `parents` of a `BayesNet`.

    Example:
        >>> from pyro_ar.tables import MarkovChain
        >>> model = TableModel(MarkovChain, structure={"order": 2})
        >>> x = torch.tensor([[0, 0, 1], [1, 1, 0], [0, 0, 0]])
        >>> model.num_parameters([2, 2, 2]), model.leave_one_out(x).shape
        (7, torch.Size([3]))
    """

    joint: type[TableJoint]
    equivalent_sample_size: float | Sequence[float] | None = 1.0
    concentration: float | None = None
    num_states: int | Sequence[int] | None = None
    structure: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(isinstance(self.joint, type) and issubclass(self.joint, TableJoint), "TableModel wants a table class", self.joint)
        if self.concentration is not None:
            require(self.joint is not ChowLiuTree, "trees need equivalent_sample_size: with a concentration equal trees differ in evidence")
            object.__setattr__(self, "equivalent_sample_size", None)
        require(all(isinstance(s, int | float) for s in self.strengths), "the strength of a Dirichlet prior must be a number, or several", self.strengths)
        require(all(math.isfinite(s or math.nan) and (s or 0) > 0 for s in self.strengths) and len(self.strengths) > 0,
                "the strength of a Dirichlet prior must be positive", self.strengths)

    @property
    def strengths(self) -> tuple[float | None, ...]:
        s = self.equivalent_sample_size if self.concentration is None else self.concentration
        return tuple(s) if isinstance(s, Iterable) else (s,)

    @property
    def _priors(self) -> list[dict[str, Any]]:
        key = "equivalent_sample_size" if self.concentration is None else "concentration"
        return [{key: s} for s in self.strengths]

    def with_states(self, num_states: Sequence[int]) -> "TableModel":
        """The same over these numbers of states, if it does not name its own."""
        return self if self.num_states is not None else replace(self, num_states=tuple(num_states))

    def num_parameters(self, num_states: Sequence[int]) -> int:
        """Free parameters; of trees those of the chain 0, 1, 2, ..., which all trees have if all variables have the same states."""
        return self.joint.count_parameters(tuple(num_states), **self.structure)

    def parameters_of(self, x: Array) -> int:
        """Free parameters of the joint that is fitted to these rows, so of the tree that they pick."""
        sizes = check_data(x, self.num_states)[1]
        picks = self.joint is ChowLiuTree and "parents" not in self.structure
        return self.joint.from_data(x, num_states=sizes).num_parameters if picks else self.num_parameters(sizes)

    def log_evidences(self, x: Array) -> Tensor:
        """Log evidence of each strength, `(S,)`, in nats."""
        options = {"num_states": self.num_states, **self.structure}
        if self.joint is ChowLiuTree and not self.structure:
            return evidences_of_trees(*check_data(x, self.num_states), [prior["equivalent_sample_size"] for prior in self._priors])
        return torch.stack([self.joint.log_evidence(x, **prior, **options) for prior in self._priors])

    def log_evidence(self, x: Array) -> Tensor:
        """Log p(x) with the tables integrated out, and the strength, and for `ChowLiuTree` the tree; exact, in nats."""
        found = self.log_evidences(x)
        return found.logsumexp(0) - math.log(len(found))

    def posterior(self, x: Array) -> TablePosterior:
        """The distribution over tables; of a `ChowLiuTree` given the tree that these rows pick.

        Raises:
            ValueError: Several strengths: their posterior is a mixture, and `fit` gives its predictive.
        """
        require(len(self.strengths) == 1, "posterior wants one strength of the prior", self.strengths)
        return self.joint.posterior(x, **self._priors[0], num_states=self.num_states, **self.structure)

    def fit(self, x: Array) -> Joint:
        """The joint of one more row: posterior mean tables, averaged over the strengths by their evidence."""
        return self.fit_with_evidences(x, None if len(self.strengths) == 1 else self.log_evidences(x))

    def fit_with_evidences(self, x: Array, log_evidences: Tensor | None) -> Joint:
        """As `fit`, from the `log_evidences` of the same rows, for one who has them already."""
        parts = [self.joint.posterior(x, **prior, num_states=self.num_states, **self.structure).predictive() for prior in self._priors]
        if len(parts) == 1:
            return parts[0]
        require(log_evidences is not None and log_evidences.shape == (len(parts),), f"{len(parts)} strengths want an evidence each", log_evidences)
        weights = cast(Tensor, log_evidences).log_softmax(0).to(parts[0].dtype)
        kept = [i for i in range(len(parts)) if weights[i] > -14]  # 1e-6 of the weight would only cost time
        return parts[kept[0]] if len(kept) == 1 else Averaged(weights[kept], [parts[i] for i in kept])

    def leave_one_out(self, x: Array) -> Tensor:
        r"""Log p(x_i | the other rows), `(N,)`, exact: no draws, no importance weights."""
        states, sizes = check_data(x, self.num_states)
        sizes = self.joint.table_sizes(sizes, dict(self.structure))
        unique, inverse = states.unique(dim=0, return_inverse=True)
        each = torch.stack([self._without(unique, states, sizes, prior) for prior in self._priors])  # (S, U)
        total = self.log_evidences(x)[:, None]
        return (total.logsumexp(0) - (total - each).logsumexp(0))[inverse]

    def _without(self, unique: Tensor, states: Tensor, sizes: tuple[int, ...], prior: dict[str, Any]) -> Tensor:
        """Log evidence less that without one such row, of each distinct row."""
        if self.joint is ChowLiuTree and "parents" not in self.structure:
            return _trees_without(unique, states, sizes, prior["equivalent_sample_size"])
        both = {"concentration": None, "equivalent_sample_size": None} | prior
        total = torch.zeros(len(unique), dtype=torch.float64)
        for blocks in self.joint.sharing(sizes, **self.structure):
            alpha = concentration_of(blocks[0], sizes, **both)
            if len(blocks) == 1:
                total += _block_without(blocks[0], unique, states, sizes, alpha)
            else:
                total += _table_without(blocks, unique, states, sizes, alpha)
        return total


def _table_without(blocks: Sequence[Block], unique: Tensor, states: Tensor, sizes: tuple[int, ...], alpha: float) -> Tensor:
    """As `_block_without`, in a table that a row enters several times."""
    counts = table_counts(blocks, states, sizes)
    whole = log_evidence_of(blocks[0], counts, alpha)
    each = [table_counts(blocks, row[None], sizes) for row in unique]
    return whole - torch.stack([log_evidence_of(blocks[0], counts - own, alpha) for own in each])


def _block_without(block: Block, unique: Tensor, states: Tensor, sizes: tuple[int, ...], alpha: float) -> Tensor:
    """Log of the predictive of each distinct row in one table, that row itself left out."""
    counts = block_counts(block, states, sizes)
    cell = counts[tuple(unique[:, v] for v in (*block.parents, *block.children))]
    inside = math.prod(sizes[v] for v in block.children)
    row = counts.flatten(len(block.parents)).sum(-1)
    row = row[tuple(unique[:, v] for v in block.parents)] if block.parents else row.expand(len(unique))
    return ((alpha + cell - 1) / (alpha * inside + row - 1)).log()


def _trees_without(unique: Tensor, states: Tensor, sizes: tuple[int, ...], strength: float) -> Tensor:
    """The same for the mean over all trees: one matrix-tree sum per distinct row."""
    n = len(sizes)

    def both(block: Block) -> tuple[Tensor, Tensor]:
        alpha = concentration_of(block, sizes, None, strength)
        return (log_evidence_of(block, block_counts(block, states, sizes), alpha),
                _block_without(block, unique, states, sizes, alpha))

    singles = [both(Block((), (v,))) for v in range(n)]
    single = torch.stack([s for _, s in singles], -1).sum(-1)
    if n == 1:
        return single
    edge = torch.full((n, n), -math.inf, dtype=torch.float64)
    change = torch.zeros(len(unique), n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i):
            whole, each = both(Block((), (j, i)))
            edge[i, j] = edge[j, i] = whole - singles[i][0] - singles[j][0]
            change[:, i, j] = change[:, j, i] = each - singles[i][1] - singles[j][1]
    rest = torch.stack([log_spanning_trees(edge - c) for c in change])
    return single + log_spanning_trees(edge) - rest


def chain_over(order: Sequence[int], k: int = 1, equivalent_sample_size: float | Sequence[float] = 1.0) -> TableModel:
    """The Markov chain of order k that visits the variables in this order.

    Raises:
        ValueError: The order is no permutation, or k is not between 1 and the variables.

    Example:
        >>> chain_over((2, 0, 1)).structure["parents"]
        ((2,), (0,), ())
    """
    n = len(order)
    require(sorted(order) == list(range(n)), f"order must be a permutation of 0 to {n - 1}", order)
    require(isinstance(k, int) and 1 <= k <= n, f"k must be between 1 and {n}", k)
    parents: list[tuple[int, ...]] = [()] * n
    for place, v in enumerate(order):
        parents[v] = tuple(order[max(0, place - k):place])
    return TableModel(BayesNet, equivalent_sample_size, structure={"parents": tuple(parents)})


@dataclass(frozen=True)
class NeuralModel:
    """A neural family trained by `par.fit`: a point estimate, so it is scored on rows that it has not seen; NaN is a hidden cell.

    Attributes:
        make: Makes a fresh family, for instance `lambda: par.NADE(16, hidden=32)`.
        options: Of `par.fit`, for instance `{"epochs": 100}`.
        seed: Of the initial weights.
        num_states: Of each variable, where the family's `Categorical` output has more than some of them: the impossible states get
            probability zero, and their weights are not counted. None: every variable has all states of the output.
    """

    make: Callable[[], Family]
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    num_states: Sequence[int] | None = None

    def fit(self, x: Array) -> Joint:
        """The joint of the best weights."""
        from pyro_ar.inference.training import fit  # brings Lightning, which only neural models need

        family = self.family()
        fit(family, x, **{"progress": False, "seed": self.seed, **self.options})
        return freeze(family())

    def num_parameters(self, num_states: Sequence[int]) -> int:
        return self.family().num_parameters

    def family(self) -> Family:
        """A fresh family, over the states that each variable has."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            family = self.make()
        if self.num_states is None or set(self.num_states) == {family.output.num_states}:
            return family
        output = PerVariable.of_states(self.num_states, getattr(family.output, "encoding", "steps"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return type(family)(**{**family.arguments, "output": output, "order": family.order})


def freeze(joint: Joint) -> Joint:
    """The same joint of tensors without gradients."""
    return joint.with_tensors({name: t.detach() for name, t in joint.tensors.items()})


def fit_recipe(name: str, recipe: Any, x: Tensor) -> Joint:
    """What the recipe makes of these rows; a posterior becomes its predictive.

    Raises:
        ValueError: It is no recipe, cannot be fitted to the rows, or makes no single joint over rows of this shape.
    """
    make = getattr(recipe, "fit", recipe)
    require(callable(make) and not isinstance(recipe, type), f"{name} must be a recipe (TableModel, NeuralModel, a function from rows to "
            "a joint), a fitted joint, or posterior draws", recipe)
    try:
        made = make(x)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    made = made.predictive() if hasattr(made, "predictive") else made
    require(isinstance(made, Joint) and made.batch_shape == (), f"{name} must make one joint, without batch", made)
    require(made.event_shape == x.shape[1:], f"{name} must make a joint over rows of shape {tuple(x.shape[1:])}", tuple(made.event_shape))
    return made
