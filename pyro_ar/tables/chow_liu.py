r"""The best tree: Chow and Liu's algorithm, and the evidence of all trees together."""

import math

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch

from torch import Tensor

from pyro_ar.arrays import Array
from pyro_ar.budget import MEMORY, TURN, at_once
from pyro_ar.checks import require
from pyro_ar.rising import log_rising_over_power
from pyro_ar.tables.base import TablePosterior
from pyro_ar.tables.bayes_net import BayesNet
from pyro_ar.tables.counts import Block, block_counts, check_data, check_weights, concentration_of, log_evidence_of
from pyro_ar.visible import training_rows

__all__ = ["ChowLiuTree", "best_tree"]



class ChowLiuTree(BayesNet):
    r"""A Bayes net in which each variable but the root has one parent.

    `from_data` finds the tree of largest likelihood: the maximum spanning tree of the mutual
    informations. With weights of several batch entries (classes) all share the tree that
    maximises their summed likelihood, the tree-augmented naive Bayes of Friedman et al. (1997);
    fit one `ChowLiuTree` per class for trees of their own.

    Of rows with hidden cells, each mutual information is that of the rows which show both variables, times all rows; the tree stays,
    and EM fills its tables.

    Shapes:
        As `BayesNet`.

    Source:
        Chow, Liu (1968), *Approximating discrete probability distributions with dependence trees*.
        Meila, Jaakkola (2006), *Tractable Bayesian learning of tree belief networks* (the evidence).

    Example:
        >>> x = torch.tensor([[0, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]])
        >>> ChowLiuTree.from_data(x).parents
        ((), (0,), (0,))
    """

    def __init__(self, parents: Sequence[Sequence[int]], tables: Sequence[Tensor],
                 *, validate_args: bool | None = None) -> None:
        require(all(len(p) <= 1 for p in parents), "in a tree each variable has at most one parent", parents)
        super().__init__(parents, tables, validate_args=validate_args)

    @classmethod
    def from_data(cls, x: Array, *, pseudocount: float = 1.0, num_states: int | Sequence[int] | None = None,
                  weights: Array | None = None, visible: Array | None = None, em_steps: int = 100,
                  **structure: Any) -> Self:
        x, seen, weights = training_rows(x, visible, weights)
        states, sizes = check_data(x, num_states)
        check_weights(weights, len(x))
        parents = structure.get("parents")
        if parents is None:
            parents = best_tree(states, sizes, weights, seen)
        return super().from_data(x, pseudocount=pseudocount, num_states=sizes, weights=weights, visible=seen, em_steps=em_steps,
                                 parents=parents)

    @classmethod
    def posterior(cls, x: Array, *, concentration: float | None = None, equivalent_sample_size: float | None = None,
                  num_states: int | Sequence[int] | None = None, **structure: Any) -> TablePosterior:
        """Distribution over the tables given the rows *and the tree* that these rows pick."""
        states, sizes = check_data(x, num_states)
        parents = structure.get("parents")
        return super().posterior(x, concentration=concentration, equivalent_sample_size=equivalent_sample_size,
                                 num_states=sizes, parents=parents or best_tree(states, sizes, None))

    @classmethod
    def log_evidence(cls, x: Array, *, concentration: float | None = None, equivalent_sample_size: float | None = None,
                     num_states: int | Sequence[int] | None = None, **structure: Any) -> Tensor:
        r"""Log of the mean over *all* trees of p(x | tree), tables integrated out; exact, in nats.

        A tree picked from the data has no honest evidence of its own. All :math:`n^{n-2}` trees
        have equal prior; the matrix-tree theorem sums them in :math:`O(n^3)`, which needs the
        evidence of a tree to be a product over its edges: only `equivalent_sample_size` has that.

        Raises:
            ValueError: `concentration` was given, or the data are no rows of states.
        """
        require(not structure, "the evidence is that of all trees together; for one tree ask BayesNet.log_evidence", structure)
        require(concentration is None and equivalent_sample_size is not None,
                "the evidence over all trees needs equivalent_sample_size", concentration)
        states, sizes = check_data(x, num_states)
        return evidences_of_trees(states, sizes, [equivalent_sample_size or 0.0])[0]

    @classmethod
    def count_parameters(cls, num_states: Sequence[int], **structure: Any) -> int:
        """Free parameters of a tree; without `parents`, of the chain 0 - 1 - 2 - ... (all trees alike if K is)."""
        n = len(num_states)
        return super().count_parameters(num_states, parents=structure.get("parents") or [()] + [(i,) for i in range(n - 1)])


def evidences_of_trees(states: Tensor, sizes: tuple[int, ...], strengths: Sequence[float]) -> Tensor:
    """Log of the mean over all trees of p(x | tree), of each equivalent sample size, `(S,)`: the pairs are counted once for all."""
    n = len(sizes)
    single = torch.stack([torch.stack([_evidence(Block((), (v,)), states, sizes, s) for v in range(n)]) for s in strengths])
    if n == 1:
        return single.sum(-1)
    edge = torch.full((len(strengths), n, n), -math.inf, dtype=torch.float64, device=states.device)
    for later, earlier, counts in _pair_counts(states, sizes):
        for of_strength, alone, s in zip(edge, single, strengths, strict=True):
            gain = _pair_evidences(counts, later, earlier, sizes, s) - alone[later, None] - alone[None, earlier]
            of_strength[later, earlier], of_strength[earlier, later] = gain, gain.T
    return torch.stack([alone.sum() + log_spanning_trees(e) - (n - 2) * math.log(n) for alone, e in zip(single, edge, strict=True)])


def _evidence(block: Block, states: Tensor, sizes: tuple[int, ...], strength: float | None) -> Tensor:
    return log_evidence_of(block, block_counts(block, states, sizes), concentration_of(block, sizes, None, strength))


def _pair_counts(states: Tensor, sizes: tuple[int, ...]) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of the lower triangle of all pairs of variables: which rows, which columns, and their counts `(rows, K, columns, K)`."""
    n, most = len(sizes), max(sizes)
    wide = max(1, math.isqrt(TURN) // most)
    parts = [slice(start, min(start + wide, n)) for start in range(0, n, wide)]
    some = at_once(2 * wide * most)  # rows at a time
    for at, later in enumerate(parts):
        for earlier in parts[: at + 1]:
            counts = torch.zeros((later.stop - later.start) * most, (earlier.stop - earlier.start) * most, dtype=torch.float64, device=states.device)
            for rows in states.split(some):
                a, b = (torch.nn.functional.one_hot(rows[:, part], most).flatten(1).double() for part in (later, earlier))
                counts.addmm_(a.T, b)
            yield later, earlier, counts.reshape(later.stop - later.start, most, earlier.stop - earlier.start, most)


def _pair_evidences(counts: Tensor, later: slice, earlier: slice, sizes: tuple[int, ...], strength: float) -> Tensor:
    """`log_evidence_of` of the joint table of each pair, `(rows, columns)`; only the number of cells tells two priors apart."""
    size = torch.tensor(sizes, device=counts.device)
    cells = size[later, None] * size[None, earlier]
    answer = torch.empty(cells.shape, dtype=torch.float64, device=counts.device)
    total = counts[0, :, 0].sum()
    for m in cells.unique().tolist():
        here = cells == m
        alpha = counts.new_tensor(concentration_of(Block((), (0,)), (m,), None, strength))
        values, which = counts.movedim(2, 1)[here].flatten(1).unique(return_inverse=True)
        each = log_rising_over_power(alpha, values)[which].sum(-1)  # 0 of the cells that padding adds
        answer[here] = each - log_rising_over_power(alpha * m, total) - total * math.log(m)
    return answer


def log_spanning_trees(edge: Tensor) -> Tensor:
    r"""Log of the sum over spanning trees of the product of edge weights, from log weights `(n, n)`.

    Star-mesh elimination of one node after another: only sums of positive numbers, so it stays
    exact where the determinant of the Laplacian would cancel.
    """
    total = edge.new_zeros(())
    edge = edge.clone()
    edge.fill_diagonal_(-math.inf)
    for k in range(len(edge) - 1, 0, -1):
        star = edge[k, :k]
        degree = star.logsumexp(0)
        total = total + degree
        edge = torch.logaddexp(edge[:k, :k], star[:, None] + star[None, :] - degree)
        edge.fill_diagonal_(-math.inf)
    return total


def best_tree(states: Tensor, sizes: tuple[int, ...], weights: Tensor | None,
               visible: Tensor | None = None) -> list[tuple[int, ...]]:
    """Prim's algorithm on the (summed) mutual informations, rooted at variable 0; ties to the lowest number."""
    information = _mutual_information(states, sizes, weights, visible)
    n = len(sizes)
    parents: list[tuple[int, ...]] = [()] * n
    best = information[0].clone()
    source = torch.zeros(n, dtype=torch.long)
    waiting = torch.ones(n, dtype=torch.bool)
    waiting[0] = False
    for _ in range(n - 1):
        v = int(best.masked_fill(~waiting, -math.inf).argmax())
        parents[v] = (int(source[v]),)
        waiting[v] = False
        closer = waiting & (information[v] > best)
        best[closer], source[closer] = information[v][closer], v
    return parents


def _mutual_information(states: Tensor, sizes: tuple[int, ...], weights: Tensor | None,
                        visible: Tensor | None = None) -> Tensor:
    """`(n, n)` float64 on the CPU, in nats times rows, summed over the batch of weights."""
    n, most = len(sizes), max(sizes)
    pairs_of_cells = (n * most) ** 2
    require(max(pairs_of_cells, len(states) * n * most) <= MEMORY, f"a tree counts all pairs of states of all variables, at most {MEMORY} in all; "
            "use fewer states, or give parents", f"{float(pairs_of_cells):.3g} pairs", f"a variable of {most} states", f"{len(states)} rows")
    tiny = torch.finfo(torch.float64).tiny
    onehot = torch.nn.functional.one_hot(states, most).double()
    onehot = (onehot if visible is None else onehot * visible.unsqueeze(-1)).flatten(1)  # (N, n K)
    w = torch.ones(1, len(states), dtype=torch.float64, device=states.device) if weights is None else weights.double().reshape(-1, len(states))
    total = torch.zeros(n, n, dtype=torch.float64, device=states.device)
    for row in w:
        pairs = (onehot * row[:, None]).T @ onehot
        single = pairs.diagonal()
        outer, share = single[:, None] * single[None, :] / row.sum().clamp(min=tiny), torch.ones_like(total)
        if visible is not None:  # each pair by the rows that show both
            table = pairs.reshape(n, most, n, most)
            both = table.sum((1, 3)).clamp(min=tiny)
            outer = (table.sum(3, keepdim=True) * table.sum(1, keepdim=True) / both[:, None, :, None]).reshape(pairs.shape)
            share = row.sum() / both
        terms = torch.where(pairs > 0, pairs * (pairs / outer.clamp(min=tiny)).log(), 0.0)
        total += terms.reshape(n, most, n, most).sum((1, 3)) * share
    return total.cpu()
