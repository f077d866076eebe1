r"""What each single cell may be, given the visible ones: all cells of a table joint in two passes."""

import torch

from torch import Tensor

from pyro_ar.tables.base import TableJoint

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
    seen = visible.expand(*left, len(joint.num_states))
    with torch.no_grad():
        return joint.cell_probabilities(torch.where(seen, x.to(joint.dtype), 0), seen)
