r"""What all table joints share: counting, evidence, posterior, and exact queries by elimination."""

import abc
import math

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch

from pyro.distributions import Categorical, Dirichlet, constraints
from torch import Size, Tensor

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.budget import at_once
from pyro_ar.checks import broadcast, counted, one_line, require, require_exact_states
from pyro_ar.joint import Joint
from pyro_ar.tables.counts import (
    Block,
    check_data,
    check_total,
    check_weights,
    concentration_of,
    count_block,
    log_evidence_of,
    relative,
    table_counts,
)
from pyro_ar.tables.elimination import Trail, backward, evidence, forward, log_total, make_plan
from pyro_ar.tables.em import expected_counts
from pyro_ar.transforms import is_mapped
from pyro_ar.visible import training_rows

__all__ = ["TableJoint", "TablePosterior"]



class TableJoint(Joint, abc.ABC):
    """A joint of discrete variables whose parameters are tables of logits.

    A final class says how its tables are laid out (`_blocks`, `_from_logits`) and which log
    factors multiply to the joint (`scopes`, `factors`); the rest is here.
    """

    def __init__(self, tensors: dict[str, Tensor], batch_shape: Size, num_states: Sequence[int],
                 *, validate_args: bool | None = None) -> None:
        self._num_states = tuple(int(k) for k in num_states)
        require(len(self._num_states) > 0 and min(self._num_states) > 0,
                f"{type(self).__name__} needs at least one variable, and at least one state of each", self._num_states)
        require_exact_states(max(self._num_states), next(iter(tensors.values())).dtype, type(self).__name__)
        self._own_batch_shape = Size(batch_shape)  # that of the tensors, before any expand
        super().__init__(tensors, batch_shape, Size([len(self._num_states)]), validate_args=validate_args)
        if self._validate_args:
            with torch.no_grad():  # NaN, +inf, or nothing but -inf
                proper = not any(bool(table.isnan().any()) for table in self._group_tables())
            require(proper, f"every distribution of {type(self).__name__} needs a state of finite logit, and none of +inf")

    # The layout of a class.

    _options: tuple[str, ...] = ()  # the keyword arguments of `_blocks`

    @classmethod
    @abc.abstractmethod
    def _blocks(cls, num_states: Sequence[int], **structure: Any) -> list[Block]:
        """The conditional tables of this class over these variables."""

    @classmethod
    @abc.abstractmethod
    def _from_logits(cls, logits: list[Tensor], num_states: Sequence[int], **structure: Any) -> Self:
        """The joint whose blocks have these logits, in the order of `_blocks`."""

    @property
    @abc.abstractmethod
    def scopes(self) -> tuple[tuple[int, ...], ...]: ...

    @abc.abstractmethod
    def _group_tables(self) -> list[Tensor]:
        """The normalised log tables, stacked as suits the class."""

    @abc.abstractmethod
    def factors(self, *, logs: bool = True) -> list[Tensor]:
        """Tables `(*B, *K_scope)`, one per scope, whose product is normalised; their logs unless told."""

    @property
    @abc.abstractmethod
    def structure(self) -> dict[str, Any]:
        """The keyword arguments of `_blocks` that make this joint."""

    @classmethod
    def sharing(cls, num_states: Sequence[int], **structure: Any) -> list[list[Block]]:
        """The blocks by the table that they share; each has its own unless a class says otherwise."""
        return [[block] for block in cls._blocks(num_states, **structure)]

    @classmethod
    def table_sizes(cls, num_states: Sequence[int], structure: dict[str, Any]) -> tuple[int, ...]:
        """The states of each variable, from those that were seen or told."""
        return tuple(num_states)

    @classmethod
    def _layout(cls, num_states: Sequence[int], structure: dict[str, Any]) -> list[list[Block]]:
        unknown = sorted(set(structure) - set(cls._options))
        require(not unknown, f"{cls.__name__} takes {' and '.join(cls._options) or 'no further argument'}", *unknown)
        return cls.sharing(num_states, **structure)

    # What follows.

    @property
    def num_states(self) -> tuple[int, ...]:
        return self._num_states

    @property
    def support(self) -> constraints.Constraint:
        most = torch.tensor(self._num_states, device=self.device) - 1
        return constraints.independent(constraints.integer_interval(torch.zeros_like(most), most), 1)

    @classmethod
    def count_parameters(cls, num_states: Sequence[int], **structure: Any) -> int:
        """Free parameters over variables with these numbers of states; allocates nothing."""
        sizes = cls.table_sizes(num_states, structure)
        return sum(count_block(blocks[0], sizes) for blocks in cls._layout(sizes, structure))

    @property
    def num_parameters(self) -> int:
        return self.count_parameters(self._num_states, **self.structure)

    @classmethod
    def from_data(cls, x: Array, *, pseudocount: float = 1.0, num_states: int | Sequence[int] | None = None,
                  weights: Array | None = None, visible: Array | None = None, em_steps: int = 100,
                  **structure: Any) -> Self:
        r"""Closed-form fit: relative counts with `pseudocount` added to every cell.

        With `pseudocount=0` it is the maximum likelihood; parent states never seen get a
        uniform conditional.

        Hidden cells are summed out by EM: counts become expected counts, and no step lowers the log-likelihood
        of the visible cells plus `pseudocount` times the sum of the log tables. The start counts, for each table, the rows that show all its variables.
        The maximum is a local one. Cells must be hidden at random (given what is visible).

        Args:
            x: `(N, n)` states, integer or floating; a tensor, an array or a data frame.
            pseudocount: Added to every cell of every table, 0 or more.
            num_states: For all variables or for each; by default the largest state seen plus one.
            weights: `(*B, N)`, 0 or more: one joint per batch entry, from weighted rows (one-hot classes, or responsibilities). A row of
                weight 2 is two equal rows, beside a `pseudocount` that stays as it is; one of weight 0 in all entries is no row.
            visible: bool, broadcastable to `x`; True = seen. What is stored under a hidden cell is never read. None: NaN hides a cell.
            em_steps: Most steps of EM; fewer where the rows gain less than 1e-6 nats each. 0: the start.
            structure: What the class needs besides: `order` of a `MarkovChain`, `parents` of a `BayesNet`.

        Raises:
            ValueError: `x` is not rows of states, or the other arguments do not fit it.
        """
        require(math.isfinite(pseudocount) and pseudocount >= 0, "pseudocount must be 0 or more", pseudocount)
        require(em_steps >= 0, "em_steps must be 0 or more", em_steps)
        x, seen, weights = training_rows(x, visible, weights)
        states, sizes = check_data(x, num_states)
        check_weights(weights, len(x))
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        sizes = cls.table_sizes(sizes, structure)
        tables = cls._layout(sizes, structure)
        check_total([blocks[0] for blocks in tables], sizes, weights)

        def joint_of(counts: list[Tensor], dtype: torch.dtype) -> Any:
            pairs = zip(counts, tables, strict=True)
            logits = [relative(table + pseudocount, blocks[0]).log().to(dtype) for table, blocks in pairs]
            return cls._from_logits(logits, sizes, **structure)

        if seen is None:
            return joint_of([table_counts(blocks, states, sizes, weights) for blocks in tables], dtype)
        return joint_of(expected_counts(joint_of, tables, states, seen, sizes, weights, pseudocount, em_steps), dtype)

    @classmethod
    def log_evidence(cls, x: Array, *, concentration: float | None = None,
                     equivalent_sample_size: float | None = None,
                     num_states: int | Sequence[int] | None = None, **structure: Any) -> Tensor:
        r"""Log p(x) with the tables integrated out under symmetric Dirichlet priors, exact, in nats.

        Args:
            x: `(N, n)` states, complete rows.
            concentration: Of every cell (1: K2), or
            equivalent_sample_size: spread over the cells of each table (BDeu).
            num_states: As in `from_data`.
            structure: As in `from_data`.

        Source:
            Heckerman, Geiger, Chickering (1995), *Learning Bayesian networks*, eq. 13 and 28.
        """
        states, sizes = check_data(x, num_states)
        sizes = cls.table_sizes(sizes, structure)
        total = torch.zeros((), dtype=torch.float64, device=states.device)
        check_total([blocks[0] for blocks in cls._layout(sizes, structure)], sizes)
        for blocks in cls._layout(sizes, structure):
            alpha = concentration_of(blocks[0], sizes, concentration, equivalent_sample_size)
            total = total + log_evidence_of(blocks[0], table_counts(blocks, states, sizes), alpha)
        return total

    @classmethod
    def posterior(cls, x: Array, *, concentration: float | None = None,
                  equivalent_sample_size: float | None = None,
                  num_states: int | Sequence[int] | None = None, **structure: Any) -> "TablePosterior":
        """Distribution over the tables given the rows, under the prior of `log_evidence`."""
        x = as_tensor(x)
        states, sizes = check_data(x, num_states)
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        sizes = cls.table_sizes(sizes, structure)
        check_total([blocks[0] for blocks in cls._layout(sizes, structure)], sizes)
        alphas = [
            (table_counts(blocks, states, sizes) + concentration_of(blocks[0], sizes, concentration, equivalent_sample_size))
            .flatten(-len(blocks[0].children)).to(dtype)
            for blocks in cls._layout(sizes, structure)
        ]
        return TablePosterior(cls, alphas, sizes, structure)

    # Queries, by elimination.

    def methods(self, visible: Tensor) -> np.ndarray:
        make_plan(self.scopes, self._num_states)  # refuses networks that are too dense
        return np.full(tuple(visible.shape[:-1]), "elimination")

    def _eliminate(self, x: Tensor, visible: Tensor, *, maximise: bool = False) -> tuple[Tensor, Trail]:
        plan = make_plan(self.scopes, self._num_states)
        factors = list(zip(self.factors(), self.scopes, strict=True))
        return forward(plan, factors, evidence(x.to(self.dtype), visible, self._num_states), maximise=maximise)

    def _in_turn(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor, visible: Tensor) -> Tensor:
        """As many rows of the leftmost dimension at once as memory allows."""
        left, own = x.shape[:-1], self._own_batch_shape
        if len(left) <= len(own):  # the leftmost dimension is a batch's
            return function(x, visible)
        each = make_plan(self.scopes, self._num_states).cells * math.prod(torch.broadcast_shapes(left[1:], own))
        step = at_once(each)
        if len(x) <= step:
            return function(x, visible)
        return torch.cat([function(x[i:i + step], visible[i:i + step]) for i in range(0, len(x), step)])

    def _log_total(self, x: Tensor, visible: Tensor) -> Tensor:
        plan = make_plan(self.scopes, self._num_states)
        factors = list(zip(self.factors(logs=False), self.scopes, strict=True))
        total = log_total(plan, factors, evidence(x.to(self.dtype), visible, self._num_states, logs=False))
        return self._eliminate(x, visible)[0] if total is None else total

    def log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        return self._in_turn(self._log_total, x, visible)

    def complete(self, x: Tensor, visible: Tensor) -> Tensor:
        return self._in_turn(lambda x, v: self._walk_back(x, v, _draw), x, visible)

    def most_likely(self, x: Tensor, visible: Tensor) -> Tensor:
        return self._in_turn(lambda x, v: self._walk_back(x, v, _argmax), x, visible)

    def cell_probabilities(self, x: Tensor, visible: Tensor) -> Tensor:
        """p(x_i = k | x_visible), `(*L, n, K)`, zero where visible; see `cells.cell_probabilities`."""
        sizes, plan = self._num_states, make_plan(self.scopes, self._num_states)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in self._tensors.values())
        left = torch.broadcast_shapes(x.shape[:-1], self._own_batch_shape)

        def factors(*, logs: bool) -> list[tuple[Tensor, tuple[int, ...]]]:
            return [(t if wanted else t.detach(), s) for t, s in zip(self.factors(logs=logs), self.scopes, strict=True)]

        with torch.enable_grad():
            soft = _leaves(evidence(x, visible, sizes, logs=False))
            total = log_total(plan, factors(logs=False), soft)
            if total is None:  # some product is too small for its dtype: the same in logarithms
                soft = _leaves(evidence(x, visible, sizes))
                total, _ = forward(plan, factors(logs=True), soft)
            slopes = torch.autograd.grad(total.expand(left).sum(), soft, create_graph=wanted)
        most = max(sizes)
        answer = torch.stack([torch.nn.functional.pad(g, (0, most - g.shape[-1])) for g in slopes], -2)
        return torch.where(visible.unsqueeze(-1), 0, answer)

    def moments(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(self.dtype)

        def answer(x: Tensor, visible: Tensor) -> Tensor:
            p = self.cell_probabilities(x, visible)
            state = torch.arange(p.shape[-1], dtype=p.dtype, device=p.device)
            mean = torch.where(visible, x, (p * state).sum(-1))
            return torch.stack([mean, (p * (state - mean.unsqueeze(-1)).square()).sum(-1)], -1)

        mean, variance = self._in_turn(answer, x, visible).unbind(-1)
        return mean, variance

    def entropy_given(self, x: Tensor, visible: Tensor) -> Tensor:
        return self._in_turn(self._entropy_of_rows, x, visible)

    def _entropy_of_rows(self, x: Tensor, visible: Tensor) -> Tensor:
        # The log of the sum of p(x_h, x_v)^t has at t = 1 the slope E[log p(x_h, x_v) | x_v]: one elimination and its gradient.
        left = torch.broadcast_shapes(x.shape[:-1], self._own_batch_shape)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in self._tensors.values())
        with torch.enable_grad():
            t = torch.ones(left, dtype=self.dtype, device=self.device, requires_grad=True)
            tempered = []
            for table, scope in zip(self.factors(), self.scopes, strict=True):
                table, dead = table if wanted else table.detach(), table == -math.inf
                power = t.reshape(*left, *[1] * len(scope)) * table.masked_fill(dead, 0.0)
                tempered.append((power.masked_fill(dead, -math.inf), scope))
            plan = make_plan(self.scopes, self._num_states)
            total, _ = forward(plan, tempered, evidence(x.to(self.dtype), visible, self._num_states))
            total = total.expand(left)
            (expected,) = torch.autograd.grad(total.sum(), t, create_graph=wanted)
        answer = total - expected
        return answer if wanted else answer.detach()

    def _walk_back(self, x: Tensor, visible: Tensor, choose: Any) -> Tensor:
        _, trail = self._eliminate(x, visible, maximise=choose is _argmax)
        return torch.where(visible, x, backward(trail, x.shape[:-1], choose, x))


class TablePosterior:
    """Independent Dirichlet posteriors of the tables of a joint.

    Attributes:
        dirichlets: One `Dirichlet` per table, `(*K_parents)` of them over the children's joint states.
    """

    def __init__(self, joint: type[TableJoint], concentrations: list[Tensor], num_states: tuple[int, ...],
                 structure: dict[str, Any]) -> None:
        self.joint, self.num_states, self.structure = joint, num_states, structure
        self.dirichlets = [Dirichlet(c) for c in concentrations]

    def __repr__(self) -> str:
        sizes = self.num_states
        of = f"{sizes[0]}" if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
        return one_line("TablePosterior", f"of {self.joint.__name__}", f"{counted(len(sizes), 'variable')} of {of} states",
                        counted(len(self.dirichlets), "table"))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, by name."""
        concentrations = [d.concentration for d in self.dirichlets]
        return {"joint": self.joint, "concentrations": concentrations, "num_states": self.num_states, "structure": self.structure}

    def _build(self, tables: list[Tensor]) -> TableJoint:
        logits = [
            table.log().unflatten(-1, [self.num_states[v] for v in blocks[0].children])
            for table, blocks in zip(tables, self.joint.sharing(self.num_states, **self.structure), strict=True)
        ]
        return self.joint._from_logits(logits, self.num_states, **self.structure)

    def sample(self, sample_shape: Any = Size()) -> TableJoint:
        """Joints with drawn tables, as one joint of batch shape `sample_shape`."""
        return self._build([d.sample(Size(sample_shape)) for d in self.dirichlets])

    def predictive(self) -> TableJoint:
        """The joint with the posterior mean tables: the exact predictive of one more row."""
        return self._build([d.mean for d in self.dirichlets])


def pick(table: Tensor, index: Tensor) -> Tensor:
    """`table (*B, M)` at `index (*L)`, where `*L` broadcasts with `*B`; the gradient is as large as the table."""
    batch = table.shape[:-1]
    size = table.shape[-1]
    offset = torch.arange(math.prod(batch), device=table.device).reshape(batch) * size
    where = offset + index
    return table.reshape(-1).index_select(0, where.reshape(-1)).reshape(where.shape)


def _leaves(parts: list[Tensor]) -> list[Tensor]:
    return [part.contiguous().requires_grad_() for part in parts]


def _draw(logits: Tensor) -> Tensor:
    return Categorical(logits=logits, validate_args=False).sample()


def _argmax(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def same_batch(tensors: dict[str, Tensor], event_dims: dict[str, int]) -> Size:
    """The broadcast batch shape of several parameters.

    Raises:
        ValueError: None given, not floating, too few dimensions, or batches that do not broadcast.
    """
    require(len(tensors) > 0, "at least one tensor of logits is needed")
    for name, t in tensors.items():
        require(isinstance(t, Tensor) and t.is_floating_point() and t.ndim >= event_dims[name],
                f"{name} must be a floating tensor of at least {event_dims[name]} dimensions", t)
        require(is_mapped(t) or not bool(t.isnan().any()), f"{name} must not hold NaN", t)
    shapes = [t.shape[: t.ndim - event_dims[name]] for name, t in tensors.items()]
    return broadcast("the batch dimensions of the tensors must broadcast", *shapes)
