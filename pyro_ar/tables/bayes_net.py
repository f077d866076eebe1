r"""Bayes nets over any directed acyclic graph."""

from collections.abc import Sequence
from typing import Any, Self

import torch

from torch import Tensor

from pyro_ar.checks import require
from pyro_ar.tables.base import same_batch
from pyro_ar.tables.counts import Block
from pyro_ar.tables.families import FamilyJoint, Group, topological_order

__all__ = ["BayesNet"]


class BayesNet(FamilyJoint):
    r"""p(x) = prod_i p(x_i | x_{parents(i)}), each factor a table.

    It has :math:`\sum_i (K_i - 1) \prod_{p \in parents(i)} K_p` free parameters.

    Shapes:
        - `tables[i]` `(*B, *K_parents, K_i)`, logits, parents in the order of `parents[i]`.
        - `batch_shape` `B`, `event_shape` `(n,)`; values are states 0 to K_i - 1.

    Args:
        parents: For each variable the numbers of its parents.
        tables: For each variable its logits, unnormalised over the last dimension.

    Raises:
        ValueError: A cycle, unknown or repeated parents, or tables that do not fit them.

    Source:
        Pearl (1988), *Probabilistic Reasoning in Intelligent Systems*.

    Example:
        >>> net = BayesNet([(), (), (0, 1)], [torch.zeros(2), torch.zeros(3), torch.zeros(2, 3, 2)])
        >>> net.num_parameters  # 1 + 2 + 6
        9
        >>> net.marginal(torch.tensor([True, False, False])).log_prob(torch.tensor([1., 0., 0.]))
        tensor(-0.6931)
    """

    def __init__(self, parents: Sequence[Sequence[int]], tables: Sequence[Tensor],
                 *, validate_args: bool | None = None) -> None:
        parents = check_parents(parents, len(tables))
        tensors = {f"tables.{i}": t for i, t in enumerate(tables)}
        batch = same_batch(tensors, {f"tables.{i}": 1 + len(p) for i, p in enumerate(parents)})
        sizes = tuple(t.shape[-1] for t in tables)
        for i, (p, t) in enumerate(zip(parents, tables, strict=True)):
            wanted = tuple(sizes[u] for u in p)
            require(tuple(t.shape[t.ndim - 1 - len(p):-1]) == wanted,
                    f"table {i} must have the states {wanted} of its parents {p}, then its own", t)
        self.tables = list(tables)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, p in enumerate(parents):
            by_shape.setdefault((*(sizes[u] for u in p), sizes[i]), []).append(i)
        self._groups = tuple(Group(tuple(m), tuple(parents[i] for i in m)) for m in by_shape.values())
        super().__init__(tensors, batch, sizes, validate_args=validate_args)

    def with_tensors(self, tensors: Any) -> "BayesNet":
        return type(self)(self.parents, list(tensors.values()), validate_args=self._validate_args)

    _options = ("parents",)

    @classmethod
    def _blocks(cls, num_states: Sequence[int], *, parents: Sequence[Sequence[int]] = (), **structure: Any) -> list[Block]:
        return [Block(p, (v,)) for v, p in enumerate(check_parents(parents, len(num_states)))]

    @classmethod
    def _from_logits(cls, logits: list[Tensor], num_states: Sequence[int], *,
                     parents: Sequence[Sequence[int]] = (), **structure: Any) -> Self:
        return cls(parents, logits)

    @property
    def _structure(self) -> dict[str, Any]:
        return {"parents": self.parents}

    def _group_tables(self) -> list[Tensor]:
        stacked = []
        for group in self._groups:
            depth = 1 + len(group.parents[0])
            logits = [self.tables[v] for v in group.members]
            batch = torch.broadcast_shapes(*(t.shape[: t.ndim - depth] for t in logits))
            logits = [t.expand(batch + t.shape[t.ndim - depth:]) for t in logits]
            stacked.append(torch.stack(logits, -depth - 1).log_softmax(-1))
        return stacked


def check_parents(parents: Sequence[Sequence[int]], n: int) -> tuple[tuple[int, ...], ...]:
    """The graph as tuples.

    Raises:
        ValueError: Not one entry per variable, unknown or repeated parents, or a cycle.
    """
    graph = tuple(tuple(int(u) for u in p) for p in parents)
    require(len(graph) == n, f"parents must list the parents of each of the {n} variables", graph)
    for v, p in enumerate(graph):
        require(len(set(p)) == len(p) and all(0 <= u < n and u != v for u in p),
                f"the parents of variable {v} must be other variables from 0 to {n - 1}, each once", p)
    require(len(topological_order(graph)) == n, "the parents must form a graph without cycles", graph)
    return graph
