r"""What each single cell may be, given the visible ones: all cells of a table joint in two passes."""

import torch

from torch import Tensor

from pyro_ar.tables.base import TableJoint
from pyro_ar.tables.elimination import evidence, forward, log_total, make_plan

__all__ = ["cell_probabilities"]


def cell_probabilities(joint: TableJoint, x: Tensor, visible: Tensor) -> Tensor:
    r"""p(x_i = k | x_visible) of every cell and state, exact; zero beyond a cell's own states.

    log p(x_visible) is multilinear in indicators s_ik of the states that are possible, so one elimination and its gradient give
    all of them, where asking `marginal` would take an elimination for each cell and state:

    .. math:: p(x_i = k \mid x_v) = \frac{\partial \log p(x_v)}{\partial s_{ik}}\Big|_{s = 1}

    Shapes:
        - `x` `(*S, *B, n)` and `visible`, broadcastable to it: as in `log_prob` of the marginal.
        - The answer is `(*S, *B, n, K)` with K the largest number of states. Where visible, or where what is visible has
          probability zero, it is zero.

    Raises:
        IntractableError: The network is too dense to be eliminated.

    Source:
        Darwiche (2003), *A differential approach to inference in Bayesian networks*, JACM 50.

    Example:
        >>> from pyro_ar.tables import FullyIndependent
        >>> coin = FullyIndependent(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        >>> cell_probabilities(coin, torch.zeros(2), torch.tensor([False, True]))
        tensor([[0.2689, 0.7311],
                [0.0000, 0.0000]])
    """
    left = torch.broadcast_shapes(x.shape[:-1], visible.shape[:-1], joint.batch_shape)
    sizes, shape = joint.num_states, (*left, len(joint.num_states))
    plan = make_plan(joint._scopes, sizes)
    seen = visible.expand(shape)
    value = torch.where(seen, x.to(joint.dtype), 0)
    with torch.enable_grad():
        soft = _leaves(evidence(value, seen, sizes, logs=False))
        tables = [(t.detach(), s) for t, s in zip(joint._factors(logs=False), joint._scopes, strict=True)]
        total = log_total(plan, tables, soft)
        if total is None:  # some product is too small for its dtype: the same in logarithms
            soft = _leaves(evidence(value, seen, sizes))
            tables = [(t.detach(), s) for t, s in zip(joint._factors(), joint._scopes, strict=True)]
            total, _ = forward(plan, tables, soft)
        slopes = torch.autograd.grad(total.expand(left).sum(), soft)
    most = max(sizes)
    answer = torch.stack([torch.nn.functional.pad(g, (0, most - g.shape[-1])) for g in slopes], -2)
    return torch.where(seen.unsqueeze(-1), 0, answer)


def _leaves(parts: list[Tensor]) -> list[Tensor]:
    return [part.contiguous().requires_grad_() for part in parts]
