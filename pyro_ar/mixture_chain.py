r"""`MixtureChain`: a family on levels that starts as a fitted mixture of Student-t, and learns what the mixture misses."""

from collections.abc import Sequence

from torch import Tensor

from pyro_ar.families import Family
from pyro_ar.nets.mixture_chain import MixtureChainNet

__all__ = ["MixtureChain"]


class MixtureChain(Family):
    r"""A chain over levels, in any order, whose conditionals are those of a mixture of Student-t per class, corrected by a net.

    A mixture of densities prices grey levels wrongly: a pixel that is always 0 in a class gives it a density without bound, where its
    probability is at most one. The chain takes the mixture's exact conditional at every level and normalises over
    the levels; the correction (`MixtureChainNet`) starts at zero. Like `OrderlessNADE` it is one joint per order, not `coherent`.

    A correction trained on the rows that the mixture was fitted to learns the wrong thing, because the mixture is too sure of them:
    `MixtureChainClassifier` trains it on cross-fitted conditionals. A pass costs a Cholesky factor per row and component.

    Shapes:
        As `MixtureChainNet`; the context is the one-hot class, absent for one class.

    Args:
        log_weights: `(C, M)`.
        df: Degrees of freedom.
        loc: `(C, M, n)`.
        scale_matrix: `(C, M, n, n)`.
        scores: Of the levels, `(n, K)`.
        event_shape: None: `(n,)`.
        hidden: Units of the correction.
        order: As in `OrderlessNADE`.

    Raises:
        ValueError: Shapes that do not fit.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[-1.0, 0.0, 1.0]]).expand(2, 3)
        >>> joint = MixtureChain(torch.zeros(1, 1), 5.0, torch.zeros(1, 1, 2), torch.eye(2).expand(1, 1, 2, 2), scores)()
        >>> joint.marginal(torch.tensor([True, False])).log_prob(torch.tensor([1.0, 0.0])).exp().detach()
        tensor(0.4635)
    """

    def __init__(self, log_weights: Tensor, df: Tensor | float, loc: Tensor, scale_matrix: Tensor, scores: Tensor, *,
                 event_shape: int | Sequence[int] | None = None, hidden: int = 48,
                 order: Tensor | Sequence[int] | str | None = None) -> None:
        net = MixtureChainNet(log_weights, df, loc, scale_matrix, scores, event_shape=event_shape, hidden=hidden)
        super().__init__(net, net.output, order=order)
