"""Does it compose inside Pyro: plates, enumeration, NUTS, SVI and Predictive?"""

import math

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate, infer_discrete
from pyro.infer.autoguide.initialization import init_to_value
from pyro.optim import PyroOptim
from torch import Tensor
from torch.distributions import transform_to

from pyro_ar.testing.oracles import (
    NotApplicable,
    agree,
    all_values,
    answered_patterns,
    check,
    device_of,
    dtype_of,
    holds,
    per_row,
)
from pyro_ar.testing.rebuilding import aligned_tensors, constraint_of, nearby, rebuilt, with_floating

__all__ = [
    "enumerates_a_class_above", "enumerates_as_latent", "infers_the_likeliest_class", "plates_scale", "predicts",
    "runs_nuts", "trace_scores_once_and_again", "trains_by_svi",
]


def _together(joint: Any, batch_dims: int) -> Any:
    """The joint with its own batch as part of the event, so that one plate holds the rows."""
    return joint.to_event(batch_dims) if batch_dims else joint


def _total(model: Callable, *data: Any, trace: Any = None) -> Tensor:
    """The log probability of a trace of the model, a number even where no site counts."""
    trace = poutine.trace(model).get_trace(*data) if trace is None else trace
    return torch.as_tensor(trace.log_prob_sum())


@check
def plates_scale(joint: Any) -> None:
    """In plates, also subsampled ones, a site's log probability is scaled right, and latent sites get the plate's shape."""
    data, index = joint.sample((10,)), torch.tensor([7, 2, 5, 0])
    batch = joint.batch_shape

    def model(value: Tensor | None) -> Tensor:
        with pyro.plate_stack("batch", batch), pyro.plate("rows", 10, subsample=index, dim=-1 - len(batch)):
            return pyro.sample("x", joint, obs=None if value is None else value[index])

    total = _total(model, data)
    agree(total, joint.log_prob(data[index]).sum() * 2.5, "log_prob_sum in a subsampled plate", loosely=10)
    holds(model(None).shape == (4, *batch, *joint.event_shape), "a latent site in a plate has a wrong shape")

    def whole(value: Tensor) -> None:
        with pyro.plate("outer", 2, dim=-2), pyro.plate("rows", 10, subsample_size=5, dim=-1) as rows:
            pyro.sample("x", _together(joint, len(batch)), obs=value[rows].expand(2, *value[rows].shape))

    trace = poutine.trace(whole).get_trace(data)
    rows = trace.nodes["rows"]["value"]
    agree(_total(whole, trace=trace), joint.log_prob(data[rows]).sum() * 4, "log_prob_sum in nested plates", loosely=10)


def _class_model(joint: Any, log_prior: Tensor, tensors: dict[str, Tensor], visible: Tensor | None = None) -> Callable:
    """Y ~ Categorical; x ~ the joint whose tensors are those of class y."""
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=log_prior), infer={"enumerate": "parallel"})
            of_class = with_floating(joint, {name: t[y] for name, t in tensors.items()})
            of_class = of_class if visible is None else of_class.marginal(visible)
            pyro.sample("x", _together(of_class, len(joint.batch_shape)), obs=x)

    return model


def _log_joint(joint: Any, log_prior: Tensor, tensors: dict[str, Tensor], x: Tensor, visible: Tensor | None) -> Tensor:
    """Log p(y, x), `(rows, classes)`, one class after the other."""
    columns = []
    for y in range(len(log_prior)):
        of_class = with_floating(joint, {name: t[y] for name, t in tensors.items()})
        log_p = of_class.log_prob(x) if visible is None else of_class.marginal(visible).log_prob(x)
        columns.append(log_prior[y] + log_p.reshape(len(x), -1).sum(-1))
    return torch.stack(columns, -1)


def _two_classes(joint: Any) -> tuple[Any, Tensor, dict[str, Tensor], Tensor, Tensor]:
    """A rebuilt joint, log prior, tensors of two classes, rows of both, and patterns."""
    base, rows = rebuilt(joint), 16
    log_prior = torch.tensor([0.48, 0.52], dtype=dtype_of(joint), device=device_of(joint)).log()
    tensors = nearby(base, (2,))
    of_class = [with_floating(base, {name: t[y] for name, t in tensors.items()}) for y in range(2)]
    x = torch.cat([p.expand(base.batch_shape).sample((rows // 2,)) for p in of_class])
    patterns = answered_patterns(base, base.sample(), count=6)
    visible = per_row(patterns[torch.arange(rows) % len(patterns)], base)
    return base, log_prior, tensors, x, visible


@check
def enumerates_a_class_above(joint: Any) -> None:
    """`TraceEnum_ELBO` sums out a class that picks the tensors, with all cells visible and with hidden ones that hold NaN."""
    base, log_prior, tensors, x, visible = _two_classes(joint)
    tensors = {name: t.requires_grad_() for name, t in tensors.items()}
    for seen, value in ((None, x), (visible, torch.where(visible, x, math.nan))):
        model = _class_model(base, log_prior, tensors, seen)
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, lambda x: None, value)
        expected = -_log_joint(base, log_prior, tensors, value, seen).logsumexp(-1).sum()
        agree(loss, expected, "TraceEnum_ELBO against the sum over classes by hand", loosely=10)
        grads = [torch.autograd.grad(t, list(tensors.values()), allow_unused=True) for t in (loss, expected)]
        for name, g, wanted in zip(tensors, *grads, strict=True):
            if wanted is not None:
                holds(g is not None and bool(g.isfinite().all()), f"gradient of TraceEnum_ELBO by {name}")
                agree(g, wanted, f"gradient of TraceEnum_ELBO by {name}", loosely=10)


@check
def infers_the_likeliest_class(joint: Any) -> None:
    """`infer_discrete` at temperature 0 finds the class of largest posterior, and at 1 a class."""
    base, log_prior, tensors, x, visible = _two_classes(joint)
    for seen, value in ((None, x), (visible, torch.where(visible, x, math.nan))):
        model = _class_model(base, log_prior, tensors, seen)
        best = infer_discrete(model, first_available_dim=-2, temperature=0)
        y = poutine.trace(best).get_trace(value).nodes["y"]["value"]
        agree(y, _log_joint(base, log_prior, tensors, value, seen).argmax(-1), "infer_discrete against argmax", exactly=True)
        drawn = poutine.trace(infer_discrete(model, first_available_dim=-2)).get_trace(value).nodes["y"]["value"]
        holds(drawn.shape == (len(x),), "infer_discrete at temperature 1 gives a wrong shape")


@check
def enumerates_as_latent(joint: Any) -> None:
    """A latent site of the joint is summed out right by `config_enumerate` and `TraceEnum_ELBO`."""
    if not joint.has_enumerate_support:
        raise NotApplicable("the joint does not enumerate its support")
    values, batch, event = all_values(joint), joint.batch_shape, len(joint.event_shape)
    slope = torch.randn(joint.event_shape, dtype=dtype_of(joint), device=values.device)

    def mean(x: Tensor) -> Tensor:
        return (x * slope).flatten(-event).sum(-1) if event else x * slope

    z = mean(joint.sample((3,))) + 0.1

    @config_enumerate
    def model(z: Tensor) -> None:
        with pyro.plate_stack("plates", z.shape):
            x = pyro.sample("x", joint)
            pyro.sample("z", dist.Normal(mean(x), 1.0), obs=z)

    loss = TraceEnum_ELBO(max_plate_nesting=z.ndim).loss(model, lambda z: None, z)
    values = values.unsqueeze(1)
    log_p = joint.log_prob(values) + dist.Normal(mean(values), 1.0).log_prob(z)
    holds(batch == joint.batch_shape, "Pyro's plates changed the joint")
    expected = -log_p.logsumexp(0).sum()
    agree(expected.new_tensor(loss), expected, "TraceEnum_ELBO over a latent joint against enumeration", loosely=10)


def _bayesian(joint: Any, rows: int = 6) -> tuple[Callable, dict[str, Tensor], Any]:
    """A model with a standard normal step away from each tensor, in the space where every step is legal."""
    base = rebuilt(joint)
    transforms = {name: transform_to(constraint_of(base, name)) for name in aligned_tensors(base)}
    centres = {name: transforms[name].inv(t) for name, t in aligned_tensors(base).items()}

    def model(x: Tensor | None = None) -> Tensor:
        tensors = {}
        for name, centre in centres.items():
            site = "step_" + name.replace(".", "_")
            step = pyro.sample(site, dist.Normal(torch.zeros_like(centre), 1.0).to_event(centre.ndim))
            tensors[name] = transforms[name](centre + step)
        of_step = _together(with_floating(base, tensors), len(base.batch_shape))
        with pyro.plate("rows", rows):
            return pyro.sample("x", of_step, obs=x)

    return model, {"step_" + name.replace(".", "_"): t for name, t in centres.items()}, base


@check
def runs_nuts(joint: Any, *, step_size: float = 0.01, num_samples: int = 5) -> None:
    """A short NUTS run over the joint's tensors moves and stays finite, and follows the right gradient.

    Options: `step_size`, `num_samples`.
    """
    model, sites, base = _bayesian(joint)
    x = base.sample((6,))
    # From the joint that x is drawn from, in fixed steps: elsewhere the posterior may be as steep as you like, and what a
    # few steps of warm-up adapt to there may be rejected ever after.
    start = init_to_value(values={name: torch.zeros_like(t) for name, t in sites.items()})
    kernel = NUTS(model, step_size=step_size, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=3, init_strategy=start)
    mcmc = MCMC(kernel, num_samples=num_samples, warmup_steps=1, disable_progbar=True)
    mcmc.run(x)
    samples = mcmc.get_samples()
    holds(set(samples) == set(sites), f"NUTS sampled {sorted(samples)}")
    for name, s in samples.items():
        holds(bool(s.isfinite().all()), f"NUTS went astray in {name}")
    moved = any(bool((s[1:] != s[:-1]).any()) for s in samples.values() if s.numel())
    holds(moved, "NUTS never moved: is the gradient right?")
    _check_gradient(model, x, samples)


def _check_gradient(model: Callable, x: Tensor, samples: dict[str, Tensor]) -> None:
    """The gradient that NUTS follows, against a central difference along one direction."""
    point = {name: s[-1] for name, s in samples.items()}
    direction = {name: torch.randn_like(t) for name, t in point.items()}

    def score(step: Tensor) -> Tensor:
        moved = {name: t + step * direction[name] for name, t in point.items()}
        return _total(poutine.condition(model, moved), x)

    zero = torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)
    (slope,) = torch.autograd.grad(score(zero), zero)
    h = torch.finfo(x.dtype).eps ** (1 / 3)
    difference = (score(zero.detach() + h) - score(zero.detach() - h)) / (2 * h)
    agree(slope, difference.detach(), "gradient along a direction against a central difference", loosely=1000)


@check
def trains_by_svi(joint: Any) -> None:
    """SVI with vectorised particles has the loss of one particle where all are equal, and gradients for every tensor."""
    model, centres, base = _bayesian(joint)
    x = base.sample((6,))

    def at(name: str) -> Tensor:
        return pyro.param(name + "_at", lambda: 0.1 * torch.randn_like(centres[name].nan_to_num(0.0)))

    def point(x: Tensor) -> None:
        for name, t in centres.items():
            pyro.sample(name, dist.Delta(at(name), event_dim=t.ndim))

    def normal(x: Tensor) -> None:
        for name, t in centres.items():
            pyro.sample(name, dist.Normal(at(name), 0.1).to_event(t.ndim))

    def elbo(particles: int) -> Trace_ELBO:
        return Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)

    one, three = (elbo(k).differentiable_loss(model, point, x) for k in (1, 3))
    agree(three, one, "loss of three equal vectorised particles against one", loosely=10)
    _check_loss_gradient(lambda: elbo(3).differentiable_loss(model, point, x))
    loss = elbo(3).differentiable_loss(model, normal, x)
    holds(bool(loss.isfinite()) and loss.shape == (), "the loss of vectorised particles must be one finite number")
    loss.backward()
    seen = 0.0
    for name, p in pyro.get_param_store().named_parameters():
        slope = math.nan if p.grad is None else float(p.grad.abs().sum())
        holds(math.isfinite(slope), f"gradient by {name} must be there and finite")
        seen += slope
    holds(seen > 0, "no gradient reaches the joint's tensors")
    svi = SVI(model, normal, PyroOptim(torch.optim.Adam, {"lr": 0.01}), elbo(3))
    holds(all(math.isfinite(svi.step(x)) for _ in range(2)), "an SVI step gave a loss that is not finite")


def _check_loss_gradient(loss: Callable[[], Tensor]) -> None:
    """The gradient of a loss by Pyro's parameters, against a central difference along one direction."""
    params = [p.unconstrained() if hasattr(p, "unconstrained") else p for _, p in pyro.get_param_store().named_parameters()]
    direction = [torch.randn_like(p) for p in params]
    grads = torch.autograd.grad(loss(), params, allow_unused=True)
    slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True) if g is not None)
    h = torch.finfo(params[0].dtype).eps ** (1 / 3)

    def moved(step: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(params, direction, strict=True):
                p += step * d
        return loss().detach()

    difference = (moved(h) - moved(-2 * h)) / (2 * h)
    agree(torch.as_tensor(slope), difference, "gradient of the loss against a central difference", loosely=1000)


@check
def predicts(joint: Any) -> None:
    """`Predictive`, sequential and parallel, draws rows for each draw of the tensors."""
    model, centres, base = _bayesian(joint)
    draws = {name: 0.1 * torch.randn(4, *t.shape, dtype=t.dtype, device=t.device) for name, t in centres.items()}
    shape = (4, 6, *base.batch_shape, *base.event_shape)
    x = Predictive(model, posterior_samples=draws, return_sites=("x",))()["x"]
    holds(x.shape == shape, f"sequential Predictive has shape {tuple(x.shape)}")
    holds(bool(base.log_prob(x).isfinite().all()), "sequential Predictive drew impossible values")
    lifted = {name: t.unsqueeze(1) for name, t in draws.items()}  # the plate's dimension, as Pyro wants it in parallel
    x = Predictive(model, posterior_samples=lifted, return_sites=("x",), parallel=True)()["x"]
    holds(x.shape == shape, f"parallel Predictive has shape {tuple(x.shape)}")
    holds(bool(base.log_prob(x).isfinite().all()), "parallel Predictive drew impossible values")
    x = Predictive(model, num_samples=3)()["x"]
    holds(x.shape == (3, *shape[1:]), f"prior Predictive has shape {tuple(x.shape)}")


@check
def trace_scores_once_and_again(joint: Any) -> None:
    """Scoring one trace twice gives the same number: nothing is drawn, and nothing used up, by `log_prob`."""
    x = joint.sample((5,))

    def model() -> None:
        with pyro.plate_stack("plates", (5, *joint.batch_shape)):
            pyro.sample("x", joint)
            pyro.sample("seen", joint, obs=x)

    trace = poutine.trace(model).get_trace()
    totals = []
    for _ in range(3):
        for node in trace.nodes.values():
            forget: Any = node
            for key in ("log_prob", "log_prob_sum", "unscaled_log_prob"):
                forget.pop(key, None)
        totals.append(_total(model, trace=trace))
    expected = joint.log_prob(trace.nodes["x"]["value"]).sum() + joint.log_prob(x).sum()
    for total in totals:
        agree(total, totals[0], "log_prob_sum of one trace, scored again", exactly=True)
        agree(total, expected, "log_prob_sum of a trace", loosely=10)
