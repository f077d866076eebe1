r"""Bayes nets over any directed acyclic graph."""

import math

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Self

import torch

from torch import Size, Tensor

from pyro_ar.checks import require
from pyro_ar.expandable import batch_of
from pyro_ar.tables.base import same_batch
from pyro_ar.tables.counts import Block
from pyro_ar.tables.local import FamilyJoint, Group, topological_order
from pyro_ar.tables.pgmpy_bridge import Named, read_pgmpy, write_pgmpy

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

    Attributes:
        variables: Names of the variables, of a net that came `from_pgmpy`; else None.
        state_names: Of each variable the names of its states.

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

    variables: tuple[Hashable, ...] | None = None
    state_names: tuple[tuple[Hashable, ...], ...] | None = None
    set_later = ("variables", "state_names")

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

    @classmethod
    def infer_shapes(cls, *, parents: Sequence[Sequence[int]] = (), tables: Sequence[Any]) -> tuple[Size, Size]:  # type: ignore[override]
        if len(parents) == 0:
            raise NotImplementedError("how many dimensions are the event's is said by the graph: give the parents themselves")
        shapes = {f"tables.{i}": shape for i, shape in enumerate(tables)}
        graph = check_parents(parents, len(shapes))
        return batch_of(cls, shapes, {f"tables.{i}": 1 + len(p) for i, p in enumerate(graph)}), Size([len(graph)])

    def with_tensors(self, tensors: Any) -> "BayesNet":
        net = type(self)(self.parents, list(tensors.values()), validate_args=self._validate_args)
        net.variables, net.state_names = self.variables, self.state_names
        return net

    @classmethod
    def from_pgmpy(cls, model: Any, variables: Sequence[Hashable] | None = None, *, dtype: torch.dtype = torch.float64) -> Self:
        """The net of a pgmpy `DiscreteBayesianNetwork`; of a BIF file: `BayesNet.from_pgmpy(BIFReader(path).get_model())`.

        Args:
            model: With a `TabularCPD` for every node.
            variables: The order of the variables; None: that of the nodes.
            dtype: Of the tables.

        Raises:
            ValueError: No such model, a node without a table, or other variables than its nodes.
        """
        named = read_pgmpy(model, variables, dtype)
        net = cls(named.parents, named.tables)
        net.variables, net.state_names = named.variables, named.state_names
        return net

    def to_pgmpy(self) -> Any:
        """The same net as a pgmpy `DiscreteBayesianNetwork`; without names of its own: variables x0, x1, ..., states 0, 1, ...

        Raises:
            ImportError: pgmpy is not installed.
            ValueError: The net has batch dimensions.
        """
        require(self.batch_shape == (), "to_pgmpy wants one net, without batch dimensions", tuple(self.batch_shape))
        names = self.variables or tuple(f"x{v}" for v in range(len(self.parents)))
        states = self.state_names or tuple(tuple(range(k)) for k in self.num_states)
        return write_pgmpy(Named(list(self.parents), [t.detach().softmax(-1) for t in self.tables], names, states))

    def row_of(self, states: Mapping[Hashable, Hashable]) -> tuple[Tensor, Tensor]:
        """A row, NaN where no state is named, and its pattern, from names of variables and states.

        Raises:
            ValueError: The net has no names, or not these.

        Example:
            >>> net = BayesNet([(), (0,)], [torch.tensor([0.8, 0.2]).log(), torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()])
            >>> net.variables, net.state_names = ("rain", "wet"), (("no", "yes"), ("no", "yes"))
            >>> x, visible = net.row_of({"wet": "yes"})
            >>> x, net.marginal(visible).log_prob(x).exp()  # 0.8 * 0.1 + 0.2 * 0.8
            (tensor([nan, 1.]), tensor(0.2400))
        """
        require(self.variables is not None and self.state_names is not None, "row_of wants a net with names, as from_pgmpy gives them")
        variables, names = self.variables or (), self.state_names or ()
        x = torch.full(self.event_shape, math.nan, dtype=self.dtype, device=self.device)
        for variable, state in states.items():
            require(variable in variables, "row_of wants variables of the net", variable)
            at = variables.index(variable)
            require(state in names[at], f"{variable} has the states {', '.join(map(str, names[at]))}", state)
            x[at] = names[at].index(state)
        return x, ~x.isnan()

    _options = ("parents",)

    @classmethod
    def _blocks(cls, num_states: Sequence[int], *, parents: Sequence[Sequence[int]] = (), **structure: Any) -> list[Block]:
        return [Block(p, (v,)) for v, p in enumerate(check_parents(parents, len(num_states)))]

    @classmethod
    def _from_logits(cls, logits: list[Tensor], num_states: Sequence[int], *,
                     parents: Sequence[Sequence[int]] = (), **structure: Any) -> Self:
        return cls(parents, logits)

    @property
    def structure(self) -> dict[str, Any]:
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
