r"""Log-likelihoods of our own making: one value per draw and row, hidden cells and enumerated classes summed out."""

import math

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch

from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.budget import at_once
from pyro_ar.checks import require
from pyro_ar.joint import Joint
from pyro_ar.visible import check_visible, read_rows

__all__ = ["model_log_likelihood", "pointwise_log_likelihood"]



def pointwise_log_likelihood(joint: Joint, x: Array, visible: Array | None = None, *, what: str = "the model") -> Tensor:
    r"""Log p(x_n | draw), or log p(x_n visible | draw), in nats.

    Components of a `Mixture` (the classes of a classifier) are summed out, each row by itself.

    Shapes:
        - `joint` of batch shape `(*B)`, its draws; `x` `(N, *E)`; `visible` broadcasts to `x`.
        - Returns `(*B, N)`.

    Args:
        joint: The draws are its batch dimensions.
        x: The rows.
        visible: bool, True = seen; None: all is seen but NaN.
        what: The model's name, for messages.

    Raises:
        ValueError: Rows of another event shape, no rows, states that the model does not know, or a value that is not finite.
        IntractableError: A pattern without an exact answer.

    Example:
        >>> from pyro_ar.tables import FullyIndependent
        >>> draws = FullyIndependent(torch.zeros(5, 3, 2))  # five draws of three fair coins
        >>> pointwise_log_likelihood(draws, torch.zeros(4, 3)).shape
        torch.Size([5, 4])
    """
    event = tuple(joint.event_shape)
    x, visible = read_rows(x, visible)
    require(isinstance(x, Tensor) and x.ndim == 1 + len(event) and tuple(x.shape[1:]) == event and len(x) > 0,
            f"{what} scores one or more rows of its event shape {event}", x)
    if visible is not None:
        visible = cells(visible, x)
    step = at_once(math.prod(joint.batch_shape) * math.prod(event))
    spread = (*[1] * len(joint.batch_shape), *event)
    parts = []
    with torch.no_grad():
        for start in range(0, len(x), step):
            some = x[start:start + step]
            some = some.reshape(len(some), *spread)
            try:
                if visible is None:
                    parts.append(joint.log_prob(some))
                else:
                    seen = visible[start:start + step].reshape(some.shape)
                    parts.append(joint.marginal(seen).log_prob(some))
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None
    return check_finite(torch.cat(parts).movedim(0, -1), what)


def cells(visible: Array, x: Tensor) -> Tensor:
    """The pattern with the shape of the rows.

    Raises:
        ValueError: No bool tensor, or it does not broadcast to the rows.
    """
    visible = as_tensor(visible, x.device)
    require(isinstance(visible, Tensor) and visible.ndim <= x.ndim, f"visible must broadcast to the rows {tuple(x.shape)}", visible)
    return check_visible(visible, x.shape)


def check_finite(log_p: Tensor, what: str) -> Tensor:
    """The same, of shape `(*draws, N)`.

    Raises:
        ValueError: Some value is NaN or infinite, so that sums and importance weights would be.
    """
    bad = ~log_p.isfinite()
    if bool(bad.any()):
        at = tuple(int(i) for i in bad.nonzero()[0])
        require(False, f"{what} must give every row a finite log-probability (a state that a joint holds for impossible has none: fit "
                "with a pseudocount)", float(log_p[at]), f"in row {at[-1]}", f"and {int(bad.any(tuple(range(log_p.ndim - 1))).sum())} rows in all")
    return log_p


def model_log_likelihood(model: Callable[..., Any], draws: Mapping[str, Tensor], *args: Any, plate: str = "rows",
                         **kwargs: Any) -> Tensor:
    r"""Log p(row | draw) of a Pyro model, `(D, N)`: what is observed inside one plate, its enumerable latents summed out.

    `poutine.mask` and `visible` count as in the model; `pyro.deterministic` and `pyro.factor` are left out.

    Args:
        model: With a plate over the rows. Discrete latents inside it are summed, each row by itself.
        draws: By the names of the latents outside the plate, `(D, *shape of the site)`.
        args: Of the model.
        plate: The name of the plate over the rows.
        kwargs: Of the model.

    Raises:
        ValueError: No such plate, a latent without draws, a latent of each row that has draws or cannot be enumerated, latents that
            couple the rows, a subsampled or scaled likelihood, or a value that is not finite.
    """
    count = {len(t) for t in draws.values()}
    require(len(count) == 1, "draws must be tensors (draws, ...) with as many draws each", {k: tuple(t.shape) for k, t in draws.items()})
    with torch.no_grad(), pyro.validation_enabled(False):
        nesting = _nesting(model, {k: t[0] for k, t in draws.items()}, args, kwargs)
        rows = [_one_draw(model, {k: t[d] for k, t in draws.items()}, args, kwargs, plate, nesting) for d in range(count.pop())]
    return check_finite(torch.stack(rows), "the model")


def _nesting(model: Callable[..., Any], draw: dict[str, Tensor], args: tuple, kwargs: dict) -> int:
    """How many batch dimensions the plates take."""
    trace = poutine.trace(poutine.condition(model, data=draw)).get_trace(*args, **kwargs)
    dims = [frame.dim for site in trace.nodes.values() if site["type"] == "sample" for frame in site["cond_indep_stack"] if frame.vectorized]
    return max((-d for d in dims if d is not None), default=0)


def _one_draw(model: Callable[..., Any], draw: dict[str, Tensor], args: tuple, kwargs: dict, plate: str, nesting: int) -> Tensor:
    enumerated = poutine.enum(config_enumerate(poutine.condition(model, data=draw), "parallel"), first_available_dim=-1 - nesting)
    trace = poutine.trace(enumerated).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    sites = [s for s in trace.nodes.values() if s["type"] == "sample" and not _is_silent(s)]
    frames = {f.name: f for s in sites for f in s["cond_indep_stack"] if f.vectorized}
    require(plate in frames, f"the model must have a vectorised plate called {plate!r} over its rows", sorted(frames))
    local, dim = [], frames[plate].dim
    for site in sites:
        inside = any(f.name == plate for f in site["cond_indep_stack"])
        _check_site(site, inside, draw)
        if inside:
            local.append(site)
    _check_enumeration(local, plate)
    total: Tensor | float = 0.0
    for site in local:
        # Other plates inside the one of the rows: their entries are parts of a row.
        inner = [f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name != plate]
        log_p = site["log_prob"]
        log_p = log_p.reshape((1,) * (nesting - log_p.ndim) + log_p.shape) if log_p.ndim < nesting else log_p
        total = total + (log_p.sum(inner, keepdim=True) if inner else log_p)
    total = torch.as_tensor(total)
    require(any(s["is_observed"] for s in local), f"the model must observe something inside the plate {plate!r}")
    total = total.movedim(dim, -1)
    total = total.reshape(-1, total.shape[-1])  # what is left of the rows is enumerated
    return total.logsumexp(0) if len(total) > 1 else total[0]


def _is_silent(site: dict[str, Any]) -> bool:
    return site["infer"].get("_deterministic", False) or type(site["fn"]).__name__ in ("Unit", "_Subsample")


def _check_site(site: dict[str, Any], inside: bool, draw: Mapping[str, Tensor]) -> None:
    name, known = site["name"], site["name"] in draw
    enumerated = site["infer"].get("_enumerate_dim") is not None and not site["is_observed"]
    if inside:
        require(not known, f"site {name!r} is a latent of each row, and its draws have seen that row: leave it out of the draws, so that it is "
                "enumerated, or sum it out in the model")
        require(site["is_observed"] or enumerated, f"site {name!r} is a latent of each row that cannot be enumerated: sum it out in the model")
        require(isinstance(site["scale"], int | float) and site["scale"] == 1, f"site {name!r} must not be subsampled or scaled", site["scale"])
    else:
        require(known or site["is_observed"], f"draws must hold the latent {name!r}" + (
            ", which couples the rows where it is enumerated" if enumerated else ""), sorted(draw))


def _check_enumeration(local: list[dict[str, Any]], plate: str) -> None:
    dims = [s["infer"]["_enumerate_dim"] for s in local if not s["is_observed"]]
    require(len(set(dims)) == len(dims), "enumerated sites in pyro.markov share dimensions and are not summed here: use a joint such as "
            "MarkovChain, or sum them out in the model")
    for site in local:
        inner = [f.name for f in site["cond_indep_stack"] if f.vectorized and f.name != plate]
        require(site["is_observed"] or not inner, f"enumerated site {site['name']!r} must stand in the plate {plate!r} alone", inner)
