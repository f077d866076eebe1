r"""What Pyro's inference asks of a site whose value is partly fixed: a support without a bijection, and who is asking.

Autoguides and MCMC move freely over the support of an unobserved site. Where some cells are fixed (a completion), or belong to nobody (the
hidden cells of a marginal), there is nothing to move over, and the site is refused with a word on what works.
"""

import sys

from collections.abc import Callable

from pyro.distributions import constraints
from pyro.ops.integrator import register_exception_handler
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import biject_to, transform_to

__all__ = ["NoEvidence", "PartlyFixed", "latent_site"]


class NoEvidence(ValueError):
    """The visible cells have a density that rounds to zero: wrong data to a user, a step too far to NUTS."""


register_exception_handler("pyro_ar_no_evidence", lambda error: isinstance(error, NoEvidence), warn_on_overwrite=False)


class PartlyFixed(constraints.Constraint):
    """Values of which some cells are not free; `biject_to` and `transform_to` refuse it with `advice`."""

    def __init__(self, free: constraints.Constraint, check: Callable[[Tensor], Tensor], advice: str) -> None:
        self.event_dim, self.is_discrete = free.event_dim, free.is_discrete
        self.check, self.advice = check, advice  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return "values of which some cells are not free"


@biject_to.register(PartlyFixed)
@transform_to.register(PartlyFixed)
def _refuse(support: PartlyFixed) -> None:
    raise ValueError(support.advice)


def latent_site() -> str | None:
    """The unobserved site that Pyro is scoring at this moment, if any: no argument of `log_prob` tells."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code in (Trace.compute_log_prob.__code__, Trace.log_prob_sum.__code__):
            site = frame.f_locals["site"]
            return None if site["is_observed"] else site["name"]
    return None
