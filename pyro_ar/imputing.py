r"""Partly seen rows inside a Pyro model: one call that observes what is visible and infers what is hidden."""

import pyro

from torch import Tensor

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.checks import require
from pyro_ar.joint import Joint

__all__ = ["impute"]


def impute(name: str, joint: Joint, x: Array, visible: Array | None = None) -> Tensor:
    r"""`pyro.sample(name, joint)` of rows that are partly seen: returns them complete, their hidden cells latent.

    It makes three sites, the first two named as by Pyro's `obs_mask` (which takes whole rows only):

    - `{name}_observed`, a factor: the visible cells under `joint.marginal(visible)`;
    - `{name}_unobserved`, event-shaped, under `joint.given(x, visible).latent()`: its hidden cells are inferred, its visible cells are
      standard normal and mean nothing;
    - `{name}`, deterministic: the complete rows, so that posterior draws of them can be asked for by name.

    The hidden cells are moved by autoguides, by NUTS, or by a guide of your own that samples `{name}_unobserved`. Together the sites weigh
    :math:`p(x_v)\, p(x_h \mid x_v) = p(x)`, so the parameters of `joint` may be latent too. Cells must be hidden at random (given what is visible
    and what the model observes).

    Shapes:
        - `x` `(*S, *B, *E)`, where `*S` are the plates around the call; as many rows as they have.
        - The answer has the shape of `x`, with the batch dimensions of `joint`, and those of vectorised particles, left of it.

    Args:
        name: Of the site.
        joint: Over real values.
        x: What is stored under a hidden cell is never read.
        visible: bool, broadcastable to `x`; True = seen. None: NaN is hidden.

    Raises:
        ValueError: Bad shapes or values.
        IntractableError: The joint is discrete, or has no exact answer for a pattern.

    Example:
        >>> import torch
        >>> from pyro_ar.elliptical import Gaussian
        >>> def model(x):
        ...     with pyro.plate("rows", len(x)):
        ...         return impute("x", Gaussian(torch.zeros(2), torch.eye(2)), x)
        >>> x = torch.tensor([[1.0, torch.nan], [torch.nan, 2.0]])
        >>> trace = pyro.poutine.trace(model).get_trace(x)
        >>> sorted(trace.nodes["x"]["value"][~x.isnan()].tolist()), list(trace.stochastic_nodes)
        ([1.0, 2.0], ['rows', 'x_unobserved'])
    """
    x = as_tensor(x, joint.device)
    require(isinstance(x, Tensor), "impute wants a tensor, an array or a data frame", x)
    visible = ~x.isnan() if visible is None else visible
    given = joint.given(x, visible)
    latent = given.latent()
    pyro.factor(f"{name}_observed", given.log_evidence)  # that of `joint.marginal(visible)` at x, not computed again
    hidden = pyro.sample(f"{name}_unobserved", latent)
    return pyro.deterministic(name, latent.complete(hidden), event_dim=len(joint.event_shape))
