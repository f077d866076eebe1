r"""Mixtures of joints: ensembles, Bayesian predictives, and, with the class as component, classifiers."""

import math

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyro.distributions import Categorical, constraints
from torch import Size, Tensor

from pyro_ar.arrays import Array
from pyro_ar.checks import IntractableError, broadcast, counted, require
from pyro_ar.expandable import batch_of, draw_states, is_shape, shapes_of
from pyro_ar.joint import Joint
from pyro_ar.transforms import is_mapped

__all__ = ["Averaged", "Mixture"]


class Mixture(Joint):
    r"""p(x) = sum_m w_m p_m(x), again a joint, exact wherever all its components are.

    .. math:: \log p(x_v) = \log \sum_m w_m\, p_m(x_v)

    Shapes:
        - `log_weights` `(*B, M)`, unnormalised (softmax over the last dimension).
        - `joints`: one joint of batch shape `(*B, M)`, mixed over its rightmost batch dimension, or
          a list of M joints of one event shape and batch shapes that broadcast.
        - `batch_shape` `B`, and the event shape of the joints.

    Raises:
        ValueError: Numbers of components, event shapes or (over real values) dtypes that do not agree; weights that are NaN, +inf or all zero.

    Example:
        >>> from pyro_ar.tables import FullyIndependent
        >>> coins = FullyIndependent(torch.tensor([[[0.0, 3.0]], [[3.0, 0.0]]]))  # two coins, each often the same
        >>> mixture = Mixture(torch.zeros(2), coins)
        >>> mixture.component_posterior(torch.tensor([1.0])).probs
        tensor([0.9526, 0.0474])
    """

    arg_constraints = {"log_weights": constraints.real_vector}

    def __init__(self, log_weights: Tensor, joints: Joint | Sequence[Joint], *, validate_args: bool | None = None) -> None:
        self.log_weights = log_weights
        self.joints = joints if isinstance(joints, Joint) else list(joints)
        parts = [joints] if isinstance(joints, Joint) else list(joints)
        require(len(parts) > 0 and all(isinstance(j, Joint) for j in parts), "a mixture wants joints", type(joints))
        first = parts[0]
        require(all(j.event_shape == first.event_shape and j.num_states == first.num_states for j in parts),
                "all components must have one event shape and the same states",
                sorted({tuple(j.event_shape) for j in parts}), sorted({str(j.num_states)[:40] for j in parts}))
        many = (joints.batch_shape[-1] if joints.batch_shape else 0) if isinstance(joints, Joint) else len(parts)
        require(isinstance(log_weights, Tensor) and log_weights.ndim >= 1 and log_weights.shape[-1] == many,
                f"log_weights must end in the number of components ({many},)", log_weights)
        require(log_weights.is_floating_point() and (validate_args is False or is_mapped(log_weights) or _are_log_weights(log_weights)),
                "log_weights must be floating, without NaN or +inf, and with a finite one in each mixture", log_weights)
        require(first.num_states is not None or len({j.dtype for j in parts}) == 1, "components over real values must have one dtype",
                *{str(j.dtype) for j in parts})
        batches = [j.batch_shape[:-1] if isinstance(joints, Joint) else j.batch_shape for j in parts]
        batch = broadcast("batch shapes of log_weights and components must broadcast", log_weights.shape[:-1], *batches)
        prefix = ["joints."] if isinstance(joints, Joint) else [f"joints.{i}." for i in range(many)]
        tensors = {"log_weights": log_weights}
        tensors |= {p + name: t for p, j in zip(prefix, parts, strict=True) for name, t in j.tensors.items()}
        super().__init__(tensors, batch, first.event_shape, validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, *, log_weights: Sequence[int], joints: Any = None) -> tuple[Size, Size]:  # type: ignore[override]
        if isinstance(joints, list) and not all(is_shape(part) for part in joints):  # of joints, not the two shapes of one
            parts = [shapes_of(cls, joint) for joint in joints]
            many, batches = len(parts), [batch for batch, _ in parts]
        else:
            parts = [shapes_of(cls, joints)]
            many, batches = (parts[0][0] or (0,))[-1], [parts[0][0][:-1]]
        events = {tuple(event) for _, event in parts}
        require(len(events) == 1, "all components must have one event shape", sorted(events))
        require(tuple(log_weights[-1:]) == (many,), f"log_weights must end in the number of components ({many},)", log_weights)
        names = {f"joints.{i}": batch for i, batch in enumerate(batches)}
        return batch_of(cls, {"log_weights": log_weights, **names}, {"log_weights": 1, **dict.fromkeys(names, 0)}), parts[0][1]

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Mixture":
        def of(prefix: str, joint: Joint) -> Joint:
            return joint.with_tensors({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})

        if isinstance(self.joints, Joint):
            return Mixture(tensors["log_weights"], of("joints.", self.joints), validate_args=self._validate_args)
        parts = [of(f"joints.{i}.", j) for i, j in enumerate(self.joints)]
        return Mixture(tensors["log_weights"], parts, validate_args=self._validate_args)

    def _particulars(self) -> list[str]:
        names = [type(j).__name__ for j in self._parts]
        inside = ", ".join(dict.fromkeys(names)) if len(set(names)) <= 3 else f"{len(set(names))} classes"
        return [f"{counted(self.log_weights.shape[-1], 'component')} of {inside}"]

    @property
    def dtype(self) -> torch.dtype:
        """That of the components."""
        return self._parts[0].dtype

    @property
    def _parts(self) -> list[Joint]:
        return [self.joints] if isinstance(self.joints, Joint) else self.joints

    @property
    def coherent(self) -> bool:  # type: ignore[override]
        return all(j.coherent for j in self._parts)

    @property
    def num_states(self) -> tuple[int, ...] | None:
        return self._parts[0].num_states

    @property
    def support(self) -> constraints.Constraint | None:
        return self._parts[0].support

    @property
    def num_parameters(self) -> int:
        many = self.log_weights.shape[-1]
        if isinstance(self.joints, Joint):
            return many - 1 + many * self.joints.num_parameters
        return many - 1 + sum(j.num_parameters for j in self.joints)

    @property
    def order(self) -> Tensor:
        """The order that all components share.

        Raises:
            IntractableError: They have different ones, so the mixture has no chain rule in closed form.
        """
        orders = [j.order for j in self._parts]
        if any(o.shape != orders[0].shape or not torch.equal(o, orders[0]) for o in orders) or orders[0].ndim > 1:
            raise IntractableError("the components have different orders: a mixture over orders has no conditionals of "
                                   "its own; ask a component, or marginal(visible)")
        return orders[0]

    def component_log_joint(self, x: Array, visible: Array | None = None) -> Tensor:
        r"""Log w_m + log p_m(x_visible), `(*S, *B, M)`, in nats.

        Args:
            x: `(*S, *B, *E)`.
            visible: bool, broadcastable to `x`; None: all is seen.
        """
        if visible is None:
            x = self.check_value(x)
            answer = self._each(lambda j, x: j.log_density(x), x)
        else:
            marginal = self.marginal(visible)
            x = self.check_value(x, marginal.visible)
            answer = marginal.answering._component_log_marginal(x, marginal.visible.expand(x.shape))
        left = torch.broadcast_shapes(x.shape[: x.ndim - len(self.event_shape)], self.batch_shape)
        return (answer + self.log_mixing()).expand(*left, -1)

    def component_posterior(self, x: Array, visible: Array | None = None) -> Categorical:
        r"""p(m | x_visible), a `Categorical` of batch shape `sample + batch`.

        Raises:
            ValueError: What is visible has probability zero under every component.
        """
        logits = self.component_log_joint(x, visible)
        possible = (logits > -math.inf).any(-1)
        require(bool(possible.all()), "component_posterior wants visible cells of positive probability",
                f"probability zero in {int((~possible).sum())} of {possible.numel()} rows")
        return Categorical(logits=logits, validate_args=None if logits.numel() else False)  # torch cannot check no rows

    def log_mixing(self) -> Tensor:
        return self.log_weights.log_softmax(-1)

    def _each(self, score: Callable[..., Tensor], *values: Tensor) -> Tensor:
        """`score(joint, *values)` of each component, `(*L, M)`."""
        event = len(self.event_shape)
        if isinstance(self.joints, Joint):
            spread = [v.unsqueeze(-1 - event) for v in values]
            left = spread[0].shape[: spread[0].ndim - event]
            answer = score(self.joints, *spread)
            return answer.expand(torch.broadcast_shapes(answer.shape, left, self.joints.batch_shape))
        left = values[0].shape[: values[0].ndim - event]
        answers = [score(j, *values) for j in self.joints]
        return torch.stack([a.expand(torch.broadcast_shapes(a.shape, left, self.batch_shape)) for a in answers], -1)

    def _component_log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        return self._each(lambda j, x, v: j.log_marginal(x, v), x, visible)

    def log_density(self, x: Tensor) -> Tensor:
        return _log_mean(self._each(lambda j, x: j.log_density(x), x) + self.log_mixing())

    def log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        return _log_mean(self._component_log_marginal(x, visible) + self.log_mixing())

    def conditional_log_prob(self, x: Array) -> Tensor:
        order, event = self.order, len(self.event_shape)
        x = self.check_value(x)

        def prefixes(joint: Joint, x: Tensor) -> Tensor:
            return joint.conditional_log_prob(x).flatten(-event)[..., order].cumsum(-1)

        if isinstance(self.joints, Joint):
            each = prefixes(self.joints, x.unsqueeze(-1 - event))
        else:
            each = torch.stack(torch.broadcast_tensors(*(prefixes(j, x) for j in self.joints)), -2)
        prefix = _log_mean((each + self.log_mixing().unsqueeze(-1)).movedim(-2, -1))
        before = torch.cat([torch.zeros_like(prefix[..., :1]), prefix[..., :-1]], -1)
        terms = prefix - before.masked_fill(before == -math.inf, 0.0)
        shape = torch.broadcast_shapes(x.shape, self.batch_shape + self.event_shape)
        return terms[..., order.argsort()].unflatten(-1, self.event_shape).expand(shape)

    def draw(self, shape: Size) -> Tensor:
        choice = draw_states(self.log_mixing(), self.batch_shape, shape)
        if isinstance(self.joints, Joint):
            every = self.joints.expand(torch.broadcast_shapes(self.joints.batch_shape, (*self.batch_shape, 1)))
            return self._select(every.draw(Size((*shape, every.batch_shape[-1]))), choice)
        x = torch.empty(shape + self.event_shape, dtype=self.dtype, device=self.device)
        for m, joint in enumerate(self.joints):
            mine = choice == m
            if joint.batch_shape or is_mapped(mine):
                x = torch.where(self._wide(mine), joint.expand(self.batch_shape).draw(shape).to(x), x)
            elif bool(mine.any()):
                x[mine] = joint.draw(Size([int(mine.sum())])).to(x)
        return x

    def complete(self, x: Tensor, visible: Tensor) -> Tensor:
        logits = self._component_log_marginal(x, visible) + self.log_mixing()
        choice = Categorical(logits=logits, validate_args=False).sample()
        event = len(self.event_shape)
        if isinstance(self.joints, Joint):
            shape = (*x.shape[: x.ndim - event], self.log_weights.shape[-1], *self.event_shape)
            chosen = self._wide(torch.nn.functional.one_hot(choice, shape[-1 - event]).bool())
            return self._select(_complete_where(chosen, self.joints, *(v.unsqueeze(-1 - event).expand(shape) for v in (x, visible))), choice)
        done = x.to(torch.promote_types(x.dtype, self.dtype), copy=True)
        for m, joint in enumerate(self.joints):
            mine = choice == m
            if joint.batch_shape or is_mapped(mine):
                done = torch.where(self._wide(mine), _complete_where(self._wide(mine), joint, x, visible), done)
            elif bool(mine.any()):
                done[mine] = joint.complete(x[mine], visible[mine]).to(done)
        return done

    def moments(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        weights = (self._component_log_marginal(x, visible) + self.log_mixing()).softmax(-1)
        at = -1 - len(self.event_shape)
        if isinstance(self.joints, Joint):
            shape = (*x.shape[: x.ndim + at + 1], self.log_weights.shape[-1], *self.event_shape)
            means, variances = self.joints.moments(*(v.unsqueeze(at).expand(shape) for v in (x, visible)))
        else:
            each = [j.moments(x, visible) for j in self.joints]
            means, variances = (torch.stack([m.expand(x.shape) for m in part], at) for part in zip(*each, strict=True))
        w = self._wide(weights)
        means, variances = (torch.where(w > 0, m, 0) for m in (means, variances))  # a component that is excluded may have none
        mean = (w * means).sum(at)
        return torch.where(visible, x, mean), torch.where(visible, 0, (w * (variances + (means - mean.unsqueeze(at)).square())).sum(at))

    def _wide(self, rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape, *[1] * len(self.event_shape))

    def _select(self, every: Tensor, choice: Tensor) -> Tensor:
        """From `(*L, M, *E)` the chosen component, `(*L, *E)`."""
        index = self._wide(choice.unsqueeze(-1)).expand(*choice.shape, 1, *self.event_shape)
        return every.gather(-1 - len(self.event_shape), index).squeeze(-1 - len(self.event_shape))

    def methods(self, visible: Tensor) -> np.ndarray:
        if isinstance(self.joints, Joint):
            return self.joints.methods(visible.unsqueeze(-1 - len(self.event_shape)))[..., 0]
        names = [j.methods(visible) for j in self.joints]
        joined = [" + ".join(dict.fromkeys(each)) for each in zip(*(n.ravel() for n in names), strict=True)]
        return np.array(joined).reshape(names[0].shape)

    def answering(self, visible: Tensor) -> "Mixture":
        if self.coherent:
            return self
        if isinstance(self.joints, Joint):
            return Mixture(self.log_weights, self.joints.answering(visible.unsqueeze(-1 - len(self.event_shape))))
        return Mixture(self.log_weights, [j.answering(visible) for j in self.joints])


class Averaged(Mixture):
    """A mixture whose components are one set of parameters, drawn or estimated several times: posterior draws, or strengths of a prior.

    `num_parameters` counts that set once: what the average adds, the components and their weights, follows from the rows and the prior.
    A `Mixture` of joints with parameters of their own counts all of them, and the weights.

    Example:
        >>> from pyro_ar.tables import FullyIndependent
        >>> draws = FullyIndependent(torch.randn(100, 3, 2))  # a hundred draws of three coins
        >>> Averaged(torch.zeros(100), draws).num_parameters, Mixture(torch.zeros(100), draws).num_parameters
        (3, 399)
    """

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Averaged":
        mixture = super().with_tensors(tensors)
        return Averaged(mixture.log_weights, mixture.joints, validate_args=self._validate_args)

    @property
    def num_parameters(self) -> int:
        return self._parts[0].num_parameters


def _are_log_weights(t: Tensor) -> bool:
    return bool((t < math.inf).all()) and bool((t > -math.inf).any(-1).all())


def _complete_where(chosen: Tensor, joint: Joint, x: Tensor, visible: Tensor) -> Tensor:
    """Completions by the joint, of the rows that chose it alone: others may have evidence that it excludes, and are shown nothing."""
    visible = visible & chosen
    return joint.complete(torch.where(visible, x, 0), visible)


def _log_mean(x: Tensor) -> Tensor:
    """log-sum-exp over the last dimension, without NaN gradients where all is minus infinity."""
    dead = (x == -math.inf).all(-1, keepdim=True)
    return x.masked_fill(dead, 0.0).logsumexp(-1).masked_fill(dead.squeeze(-1), -math.inf)
