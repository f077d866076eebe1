r"""Joints that are products of one conditional table per variable: the shared machinery."""

import abc
import itertools
import math

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from pyro.distributions import Categorical
from torch import Size, Tensor

from pyro_ar.arrays import Array
from pyro_ar.checks import counted
from pyro_ar.tables.base import TableJoint, pick

__all__ = ["FamilyJoint", "Group", "conditionals_of", "topological_order"]


class Group(NamedTuple):
    """Variables whose tables have one shape, so that they are looked up in one gather.

    `members[j]` is a variable and `parents[j]` its parents.
    """

    members: tuple[int, ...]
    parents: tuple[tuple[int, ...], ...]


class FamilyJoint(TableJoint, abc.ABC):
    r"""p(x) = prod_i p(x_i | parents of i), each factor a table.

    A final class gives `_groups`, in which every variable occurs once, and `_group_tables`.
    """

    _groups: tuple[Group, ...]

    @abc.abstractmethod
    def _group_tables(self) -> list[Tensor]:
        """Per group the normalised log tables `(*B, members, *K_parents, K)`."""

    @property
    def scopes(self) -> tuple[tuple[int, ...], ...]:
        return tuple((*p, v) for group in self._groups for v, p in zip(*group, strict=True))

    def factors(self, *, logs: bool = True) -> list[Tensor]:
        return [
            table
            for group, tables in zip(self._groups, self._group_tables(), strict=True)
            for table in (tables if logs else tables.exp()).unbind(-2 - len(group.parents[0]))
        ]

    @property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """The parents of each variable."""
        of = {v: p for group in self._groups for v, p in zip(*group, strict=True)}
        return tuple(of[v] for v in range(len(of)))

    def _particulars(self) -> list[str]:
        return [counted(sum(map(len, self.parents)), "edge")]

    @property
    def order(self) -> Tensor:
        """A topological order of the network: parents before children."""
        return torch.tensor(topological_order(self.parents), device=self.device)

    def _terms(self, x: Tensor) -> list[Tensor]:
        """Per group log p(x_v | its parents), `(*L, members)`."""
        states = x.long()
        terms = []
        for group, tables in zip(self._groups, self._group_tables(), strict=True):
            depth = 1 + len(group.parents[0])
            sizes = tables.shape[tables.ndim - depth:]
            columns = torch.tensor([(*p, v) for v, p in zip(*group, strict=True)], device=x.device)
            strides = torch.tensor([math.prod(sizes[i + 1:]) for i in range(depth)], device=x.device)
            flat = (states[..., columns] * strides).sum(-1)
            flat = flat + torch.arange(len(columns), device=x.device) * math.prod(sizes)
            terms.append(_pick_each(tables.flatten(-depth - 1), flat))
        return terms

    def log_density(self, x: Tensor) -> Tensor:
        return sum((term.sum(-1) for term in self._terms(x)), torch.zeros((), dtype=self.dtype, device=self.device))

    def conditional_log_prob(self, x: Array) -> Tensor:
        x = self.check_value(x)
        terms = self._terms(x)
        left = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        joined = torch.cat([t.expand(*left, t.shape[-1]) for t in terms], -1)
        members = [v for group in self._groups for v in group.members]
        back = torch.tensor(members, device=x.device).argsort()
        return joined[..., back]

    def draw(self, shape: Size) -> Tensor:
        tables = dict(zip((s[-1] for s in self.scopes), zip(self.factors(), self.scopes, strict=True), strict=True))
        states: dict[int, Tensor] = {}
        for v in topological_order(self.parents):
            table, scope = tables[v]
            logits = self._rows_of(table, scope[:-1], states, shape)
            states[v] = Categorical(logits=logits, validate_args=False).sample()
        return torch.stack([states[v] for v in range(len(states))], -1).to(self.dtype)

    @staticmethod
    def _rows_of(table: Tensor, parents: tuple[int, ...], states: dict[int, Tensor], shape: Size) -> Tensor:
        """The conditional of each row, `(*shape, K)`, given the states of its parents."""
        left = table.ndim - 1 - len(parents)
        if not parents:
            return table.expand(*shape, table.shape[-1])
        index = torch.zeros((), dtype=torch.long, device=table.device)
        for u, size in zip(parents, table.shape[left:-1], strict=True):
            index = index * size + states[u]
        flat = table.flatten(left, -2).expand(*shape, -1, table.shape[-1])
        return flat.gather(-2, index[..., None, None].expand(*shape, 1, table.shape[-1])).squeeze(-2)


def _pick_each(table: Tensor, flat: Tensor) -> Tensor:
    """`pick`, for `(*B, M)` at `(*L, m)`: batch dimensions stand left of the last index dimension."""
    return pick(table.unsqueeze(-2), flat) if table.ndim > 1 else pick(table, flat)


def topological_order(parents: Sequence[Sequence[int]]) -> list[int]:
    """Variables with parents first, lowest number first; shorter than `parents` if there is a cycle."""
    done: dict[int, None] = {}
    waiting = list(range(len(parents)))
    while waiting:
        ready = [v for v in waiting if all(p in done for p in parents[v])]
        if not ready:
            break
        done.update(dict.fromkeys(ready))
        waiting = [v for v in waiting if v not in done]
    return list(done)


def conditionals_of(log_table: Tensor, n: int) -> list[Tensor]:
    """From a normalised log table over `n` variables: log p(x_i | x_<i), `(*B, K_1, ..., K_i)` each."""
    prefixes = [log_table]
    for _ in range(n - 1):
        prefixes.append(prefixes[-1].logsumexp(-1))
    prefixes.reverse()
    parts: list[Any] = [prefixes[0]]
    for shorter, longer in itertools.pairwise(prefixes):
        impossible = shorter == -math.inf
        parts.append(longer - shorter.masked_fill(impossible, 0.0).unsqueeze(-1))
    return parts
