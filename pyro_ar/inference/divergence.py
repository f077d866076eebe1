r"""Kullback-Leibler distances between joints: exact in Pyro's own registry, or by name an estimate with its error.

`torch.distributions.kl_divergence` (which Pyro uses too) answers for two joints of this library when it can be
exact, and refuses with an `IntractableError` otherwise:

====================  ===========================================================================
pair                  how
====================  ===========================================================================
two Gaussians         closed form, low-rank ones too
two tables            the tables of q, averaged over the marginals of p on their scopes (elimination)
at most `MAX_STATES`  the sum over all values: any discrete joints, neural and mixtures too
====================  ===========================================================================
"""

import math

from typing import Any, NamedTuple

import torch

from torch import Size, Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, kl_divergence, register_kl

from pyro_ar.budget import at_once
from pyro_ar.checks import IntractableError, broadcast, require
from pyro_ar.elliptical import Gaussian, LowRankGaussian
from pyro_ar.enumeration import all_states
from pyro_ar.joint import Joint
from pyro_ar.queries import Given, Marginal
from pyro_ar.tables.base import TableJoint

__all__ = ["MAX_STATES", "KLEstimate", "closest_table", "estimate_kl", "kl_divergence"]

MAX_STATES = 2**20  # values of the sum, or rows of marginals


class _NoExactDistance(IntractableError, NotImplementedError):
    """Also a `NotImplementedError`, upon which Pyro's `TraceMeanField_ELBO` falls back to draws."""


@register_kl(Joint, Joint)
def _kl_joints(p: Joint, q: Joint) -> Tensor:
    """KL(p || q) in nats, of the broadcast batch shape."""
    shape = _check_pair(p, q)
    if isinstance(p, Gaussian | LowRankGaussian) and isinstance(q, Gaussian | LowRankGaussian):
        answer = kl_divergence(_as_normal(p), _as_normal(q))
    elif isinstance(p, TableJoint) and isinstance(q, TableJoint) and max(_rows(p), _rows(q)) <= MAX_STATES:
        answer = _expected_log(p, p) - _expected_log(p, q)
    elif p.num_states is not None and math.prod(p.num_states) <= MAX_STATES:
        answer = _by_enumeration(p, q)
    else:
        size = "real values" if p.num_states is None else f"{float(math.prod(p.num_states)):.3g} joint states"
        raise _NoExactDistance(
            f"KL({type(p).__name__} || {type(q).__name__}) over {size} has no exact answer here; it is exact for two tables, two "
            f"Gaussians, and discrete joints of at most {MAX_STATES} states. What works: par.comparison.estimate_kl, with its standard error")
    # Rounding may leave -1e-17 where the distance is zero.
    return torch.where(answer < 0, answer.abs() * 0, answer).expand(shape)


def _refuse(p: Any, q: Any) -> Tensor:
    raise _NoExactDistance(
        f"KL({type(p).__name__} || {type(q).__name__}) has no exact answer here: marginals and conditionals are known by their log_prob only. What works: "
        "a Monte Carlo mean of p.log_prob - q.log_prob over p.sample(), or kl_divergence of the two joints themselves")


for _p in (Joint, Marginal, Given):
    for _q in (Joint, Marginal, Given):
        if (_p, _q) != (Joint, Joint):
            register_kl(_p, _q)(_refuse)


def _check_pair(p: Any, q: Any) -> Size:
    require(p.event_shape == q.event_shape, "a distance needs joints of one event shape", tuple(p.event_shape), tuple(q.event_shape))
    require(p.num_states == q.num_states, "a distance needs joints over the same states", p.num_states, q.num_states)
    return broadcast("batch shapes must broadcast", p.batch_shape, q.batch_shape)


def _as_normal(joint: Gaussian | LowRankGaussian) -> Any:
    """Torch's own, which has closed forms for all four pairs."""
    D, batch = joint.event_shape[0], joint.batch_shape
    loc = joint.loc.expand(*batch, D)
    if isinstance(joint, Gaussian):
        return MultivariateNormal(loc, joint.covariance_matrix.expand(*batch, D, D), validate_args=False)
    factor, diag = joint.cov_factor.expand(*batch, D, joint.rank), joint.cov_diag.expand(*batch, D)
    return LowRankMultivariateNormal(loc, factor, diag, validate_args=False)


def _rows(joint: TableJoint) -> int:
    return sum(math.prod(joint.num_states[v] for v in scope) for scope in joint.scopes)


def _expected_log(p: TableJoint, q: TableJoint) -> Tensor:
    """E_p[log q]: each log table of q against the marginal of p on its scope."""
    tables = _by_scope(q)
    asked = [_cells(p, scope) for scope in tables]
    x, visible = (torch.cat(parts) for parts in zip(*asked, strict=True))
    spread = (len(x), *[1] * len(p.batch_shape), -1)
    weights = p.marginal(visible.reshape(spread)).log_prob(x.reshape(spread)).exp().movedim(0, -1)
    total: Tensor | float = 0.0
    for (scope, factor), weight in zip(tables.items(), weights.split([len(x) for x, _ in asked], -1), strict=True):
        table = factor.flatten(factor.ndim - len(scope))
        total = total + torch.where(weight > 0, weight * table.masked_fill(weight == 0, 0.0), 0.0).sum(-1)
    return torch.as_tensor(total)


def _cells(p: TableJoint, scope: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A row for every joint state of the scope, and where it is seen, `(prod K, n)` each."""
    states = all_states(tuple(p.num_states[v] for v in scope), p.dtype, p.device)
    x = torch.zeros(len(states), len(p.num_states), dtype=p.dtype, device=p.device)
    visible = torch.zeros_like(x, dtype=torch.bool)
    x[:, list(scope)], visible[:, list(scope)] = states, True
    return x, visible


def _by_scope(q: TableJoint) -> dict[tuple[int, ...], Tensor]:
    """The log tables of q; those that lie inside another's scope are added to it, so that p is asked less often."""
    tables: dict[tuple[int, ...], Tensor] = {}
    for scope, factor in sorted(zip(q.scopes, q.factors(), strict=True), key=lambda pair: -len(pair[0])):
        home = next((s for s in tables if s[: len(scope)] == scope), None)
        if home is None:
            tables[scope] = factor
        else:
            extra = factor.reshape(*factor.shape, *[1] * (len(home) - len(scope)))
            tables[home] = tables[home] + extra
    return tables


def _by_enumeration(p: Joint, q: Joint) -> Tensor:
    total: Tensor | float = 0.0
    batch = max(len(p.batch_shape), len(q.batch_shape))
    states = all_states(p.num_states or (), p.dtype, p.device)
    each = len(p.num_states or ()) * max(math.prod(p.batch_shape), math.prod(q.batch_shape), 1)
    for some in states.split(at_once(each)):
        x = some.reshape(len(some), *[1] * batch, *p.event_shape)
        log_p, log_q = p.log_prob(x), q.log_prob(x.to(q.dtype))
        impossible = log_p == -math.inf
        total = total + torch.where(impossible, 0.0, log_p.exp() * (log_p.masked_fill(impossible, 0.0) - log_q.masked_fill(impossible, 0.0))).sum(0)
    return torch.as_tensor(total)


class KLEstimate(NamedTuple):
    """An estimate of KL(p || q) in nats, and its standard error, each of the broadcast batch shape."""

    value: Tensor
    error: Tensor


def estimate_kl(p: Any, q: Any, num_samples: int = 10_000, *, chunk: int = 1000) -> KLEstimate:
    r"""Mean of log p(x) - log q(x) over draws of p, with its standard error.

    Unbiased, so it may fall below zero. Any two distributions that sample and score will do, not only joints.
    The error is infinite or NaN where q calls a draw impossible: the distance is infinite then.

    Args:
        p: Draws come from it.
        q: The other one, of the same event shape.
        num_samples: At least 2.
        chunk: Draws at a time.

    Raises:
        ValueError: Event shapes or batch shapes that do not agree, or fewer than 2 draws.

    Example:
        >>> p = Gaussian(torch.zeros(2), torch.eye(2))
        >>> q = Gaussian(torch.ones(2), torch.eye(2))
        >>> estimate_kl(p, q, 1000).error < 0.1, kl_divergence(p, q)  # exactly 1
        (tensor(True), tensor(1.))
    """
    require(isinstance(num_samples, int) and num_samples >= 2, "num_samples must be 2 or more", num_samples)
    require(isinstance(chunk, int) and chunk >= 1, "chunk must be 1 or more", chunk)
    if isinstance(p, Joint) and isinstance(q, Joint):
        shape = _check_pair(p, q)
    else:
        require(p.event_shape == q.event_shape, "a distance needs distributions of one event shape", tuple(p.event_shape), tuple(q.event_shape))
        shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    p = p.expand(shape)
    gaps = []
    with torch.no_grad():
        for start in range(0, num_samples, chunk):
            x = p.sample(Size([min(chunk, num_samples - start)]))
            gaps.append(p.log_prob(x).double() - q.log_prob(x).double())
    gap = torch.cat(gaps)
    return KLEstimate(gap.mean(0), gap.std(0) / math.sqrt(num_samples))


def closest_table(truth: Joint, table: type[TableJoint], **structure: Any) -> TableJoint:
    r"""The joint of a table class nearest to `truth`: arg min over q of KL(truth || q), in closed form.

    Its distance is what the class cannot close, however much data it sees.

    Args:
        truth: A discrete joint without batch, of at most `MAX_STATES` values.
        table: A table class; `ChowLiuTree` finds the nearest of all trees.
        structure: As in `from_data`.

    Raises:
        ValueError: The joint has batch dimensions.
        IntractableError: Too many values.

    Source:
        Chow, Liu (1968) for the tree; Koller, Friedman (2009), *Probabilistic Graphical Models*, theorem 8.7 (M-projection).

    Example:
        >>> from pyro_ar.tables import FullTable, FullyIndependent
        >>> truth = FullTable(torch.tensor([[0.3, 0.2], [0.1, 0.4]]).log())
        >>> kl_divergence(truth, closest_table(truth, FullyIndependent))  # the mutual information
        tensor(0.0863)
    """
    require(truth.batch_shape == (), "closest_table wants one joint, without batch", tuple(truth.batch_shape))
    if truth.num_states is None or math.prod(truth.num_states) > MAX_STATES:
        raise IntractableError(f"closest_table sums over all values of the truth, at most {MAX_STATES}; draw rows from it and use from_data")
    states = all_states(truth.num_states, truth.dtype, truth.device)
    with torch.no_grad():
        weights = truth.log_prob(states.reshape(-1, *truth.event_shape)).exp()
        return table.from_data(states, weights=weights, pseudocount=0.0, num_states=truth.num_states, **structure)
