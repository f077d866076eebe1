"""How surprising each variable of a row is, in nats: a map, where rows are images."""

import torch

from torch import Tensor

from pyro_ar.arrays import Array
from pyro_ar.budget import at_once
from pyro_ar.checks import require
from pyro_ar.joint import Joint

__all__ = ["surprise"]


def surprise(joint: Joint, x: Array, given: str = "before") -> Tensor:
    r"""How surprising each variable is: :math:`-\log p(x_i \mid x_{<i})`, or given all the others.

    Given those *before* it in the joint's order the surprises of a row sum to its :math:`-\log p(x)`, but where a surprise shows depends on the order: a cell
    that contradicts its neighbours is blamed on the last of them. Given all *others* each variable is judged by itself; the sum means nothing, and each
    variable costs a marginal.

    Shapes:
        `(*S, *B, *E)` for `x` of this shape.

    Args:
        joint: Any; given 'others' it must answer a pattern that hides one variable.
        x: Complete rows.
        given: 'before' or 'others'.

    Raises:
        ValueError: Bad values, or another word.
        IntractableError: The joint has no conditionals in closed form, or no exact answer to these patterns.

    Source:
        Besag (1975), *Statistical analysis of non-lattice data*: the sum of the latter is minus the log pseudo-likelihood.

    Example:
        >>> from pyro_ar.tables import MarkovChain
        >>> joint = MarkovChain.from_data(torch.tensor([[0, 0, 0], [1, 1, 1]]), pseudocount=0.05)
        >>> surprise(joint, torch.tensor([0, 1, 0])).round(decimals=1)  # each step is a break
        tensor([0.7000, 3.1000, 3.1000])
        >>> surprise(joint, torch.tensor([0, 1, 0]), given="others").round(decimals=1)  # the middle alone breaks with two neighbours
        tensor([3.1000, 6.1000, 3.1000])
    """
    require(given in ("before", "others"), "given must be 'before' or 'others'", given)
    if given == "before":
        return -joint.conditional_log_prob(x)
    whole, value = joint.log_prob(x), joint.check_value(x)
    event = tuple(joint.event_shape)
    n = value[(0,) * (value.ndim - len(event))].numel()
    seen = ~torch.eye(n, dtype=torch.bool, device=value.device).reshape(n, *[1] * whole.ndim, *event)
    rest = torch.cat([joint.marginal(some).log_prob(value) for some in seen.split(at_once(value.numel()))])
    return (rest - whole).movedim(0, -1).unflatten(-1, event)
