"""`Autoregressive` against the chain rule by hand, sums over hidden cells by hand, and inside Pyro."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch.testing import assert_close

from pyro_ar import outputs
from pyro_ar.checks import IntractableError
from pyro_ar.neural import Net
from pyro_ar.neural.autoregressive import Autoregressive
from pyro_ar.neural.family import Family
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.neural.made import MADE
from pyro_ar.neural.nade import NADE
from pyro_ar.neural.orderless_nade import OrderlessNADE
from pyro_ar.neural.over_orders import OverOrders
from pyro_ar.order import random_orders

pytestmark = pytest.mark.usefixtures("float64")

MAKERS = {
    "fvsbn": FVSBN,
    "nade": lambda *a, **k: NADE(*a, hidden=4, **k),
    "made": lambda *a, **k: MADE(*a, hidden=(6, 5), **k),
    "orderless": lambda *a, **k: OrderlessNADE(*a, hidden=4, **k),
}
FIXED = [name for name in MAKERS if name != "orderless"]


def family(name, *args, scale=0.6, **kwargs):
    made = MAKERS[name](*args, **kwargs)
    with torch.no_grad():
        for p in made.parameters():
            p.normal_().mul_(scale)
    return made


def draws_of(joint, *shape):
    return joint.with_tensors({
        name: t if name == "context" else t.detach() + 0.3 * torch.randn(*shape, *t.shape)
        for name, t in joint.tensors.items()})


# The chain rule, one number at a time, from the weights and the published formulas alone.


def sigmoid(t):
    return 1 / (1 + math.exp(-t))


def log_bernoulli(logit, x):
    return math.log(sigmoid(logit) if x == 1 else 1 - sigmoid(logit))


def log_categorical(logits, x):
    logits = [0.0, *logits]
    return logits[int(x)] - math.log(sum(math.exp(z) for z in logits))


def raws_by_hand(made, x, order, context):
    """Yield the raw parameters of each variable in turn, for one row `x`."""
    w = {name: p.detach() for name, p in made.net.named_parameters()}
    encode = made.output.encode
    raw = made.output.raw
    n = len(x)
    extra = torch.zeros(n * raw)
    seen = []
    for place, variable in enumerate(order):
        if isinstance(made, FVSBN):
            z = w["bias"][place].clone()
            for j, earlier in enumerate(seen):
                z = z + w["weight"][place, :, j] @ encode(x[earlier])
            if context is not None:
                extra = context @ w["context_weight"]
            yield z + extra.reshape(n, raw)[place]
        elif isinstance(made, NADE | OrderlessNADE):
            free = isinstance(made, OrderlessNADE)
            a = w["hidden_bias"] + (context @ w["hidden_context"] if context is not None else 0)
            for j, earlier in enumerate(seen):
                a = a + encode(x[earlier]) @ w["input_weight"][earlier if free else j]
                a = a + (w["known_weight"][earlier] if free else 0)
            if context is not None:
                extra = context @ w["output_context"]
            at = variable if free else place
            yield w["output_bias"][at] + extra.reshape(n, raw)[at] + torch.sigmoid(a) @ w["output_weight"][at]
        elif isinstance(made, MADE):
            yield made_by_hand(w, made, [encode(x[earlier]) for earlier in seen], context)[place]
        seen.append(variable)


def made_by_hand(w, made, seen, context):
    """One unit and one wire at a time: degrees as in Germain et al. (2015), eq. 12 and 13, spread evenly and sorted."""
    n, low = made.net.num_variables, 0 if context is not None else 1
    below = [(j + 1, f) for j in range(n) for f in (seen[j].tolist() if j < len(seen) else [math.nan] * made.output.inputs)]
    for layer in range(3):
        if layer < 2:
            width = made.net.hidden[layer]
            degrees = [low + k * max(n - low, 1) // width for k in range(width)]
        else:
            degrees = [i + 1 for i in range(n) for _ in range(made.output.raw)]
        units = []
        for k, degree in enumerate(degrees):
            z = float(w[f"layers.{layer}.bias"][k])
            for j, (lower, value) in enumerate(below):
                if lower < degree or (lower == degree and layer < 2):
                    z += float(w[f"layers.{layer}.weight"][k, j]) * value
            if context is not None and layer in (0, 2):
                z += float(context @ w["hidden_context" if layer == 0 else "output_context"][:, k])
            units.append((degree, max(z, 0.0) if layer < 2 else z))
            if math.isnan(z):  # it sees what is not there yet
                units[-1] = (degree, math.nan)
        below = units
    return torch.tensor([z for _, z in below]).reshape(n, -1)


def log_probs_by_hand(made, x, order, context=None):
    log_one = log_bernoulli if isinstance(made.output, outputs.Bernoulli) else None
    terms = [0.0] * len(x)
    for variable, raw in zip(order, raws_by_hand(made, x, order, context), strict=True):
        if log_one:
            terms[variable] = log_one(float(raw), float(x[variable]))
        elif made.output.num_states:
            terms[variable] = log_categorical(raw.tolist(), float(x[variable]))
        else:
            loc, scale = float(raw[0]), math.log(1 + math.exp(float(raw[1]) + math.log(math.e - 1))) + 1e-3
            z = (float(x[variable]) - loc) / scale
            terms[variable] = -0.5 * z * z - math.log(scale) - 0.5 * math.log(2 * math.pi)
    return torch.tensor(terms)


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("output", [outputs.Bernoulli(), outputs.Categorical(3), outputs.Normal()], ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_conditionals_by_hand(name, output, context_dim) -> None:
    order = [3, 0, 4, 1, 2]
    made = family(name, 5, output=output, context_dim=context_dim, order=order)
    context = torch.randn(6, 2) if context_dim else None
    joint = made() if context is None else made(context)
    x = joint.sample() if context_dim else joint.sample((6,))
    expected = torch.stack([
        log_probs_by_hand(made, row, order, None if context is None else context[i]) for i, row in enumerate(x)])
    assert_close(joint.conditional_log_prob(x), expected)
    assert_close(joint.log_prob(x), expected.sum(-1))


def test_an_order_per_row_by_hand() -> None:
    made = family("orderless", 4, output=outputs.Categorical(3))
    orders = random_orders(6, 4)
    joint = made(order=orders)
    x = joint.sample()
    expected = torch.stack([log_probs_by_hand(made, row, order.tolist()) for row, order in zip(x, orders, strict=True)])
    assert_close(joint.conditional_log_prob(x), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_order_permutes(name) -> None:
    """A fixed-order net in another order is the same net on permuted variables; an image is its flattened raster."""
    order = torch.tensor([2, 0, 3, 1])
    made = family(name, (2, 2))
    x = torch.randint(2, (7, 2, 2)).double()
    if name != "orderless":
        permuted = x.flatten(1)[:, order].reshape(7, 2, 2)
        assert_close(made(order=order).log_prob(x), made().log_prob(permuted))
    flat = Autoregressive(family(name, 4).net, made().tensors, made.output, order)
    assert_close(made(order=order).log_prob(x), flat.log_prob(x.flatten(1)))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("left", [(), (3,), (5, 1), (5, 3), (2, 1, 1)])
def test_draws_contexts_and_rows_line_up(name, left) -> None:
    """Every entry of the answer is what one draw says of one row under one context."""
    made = family(name, 3, context_dim=2, order=[1, 2, 0])
    context = torch.randn(3, 2)
    one = made(context)
    joint = draws_of(one, 5, 1)
    assert joint.batch_shape == (5, 3)
    x = torch.randint(2, (*left, 3)).double()
    answer = joint.log_prob(x)
    wide = x.expand(*torch.broadcast_shapes(left, (5, 3)), 3)
    assert answer.shape == wide.shape[:-1]
    for where in itertools.product(*map(range, answer.shape)):
        d, c = where[-2:]
        tensors = {k: t[d, 0] if k != "context" else t[c] for k, t in joint.tensors.items()}
        assert_close(answer[where], one.with_tensors(tensors).log_prob(wide[where]))


def test_rows_are_not_copied_per_class(monkeypatch) -> None:
    """The linear net multiplies each row once, whatever the number of classes."""
    made = family("fvsbn", 6, context_dim=10)
    sizes = []
    encode = outputs.Bernoulli.encode
    monkeypatch.setattr(outputs.Bernoulli, "encode", lambda self, x: sizes.append(x.numel()) or encode(self, x))
    assert made(torch.eye(10)[:, None]).log_prob(torch.zeros(50, 6)).shape == (10, 50)
    assert sizes == [300]


# Hidden cells.


def summed(joint, x, visible):
    """Log of the sum of `exp(log_prob)` over the hidden cells of one row."""
    values = joint.enumerate_support(expand=False).reshape(-1, *joint.event_shape)
    fits = ((values == x) | ~visible).flatten(1).all(1)
    return joint.log_prob(values[fits].reshape(-1, *[1] * len(joint.batch_shape), *joint.event_shape)).logsumexp(0)


@pytest.mark.parametrize("output", [outputs.Bernoulli(), outputs.Categorical(3)], ids=str)
@pytest.mark.parametrize("name", FIXED)
def test_marginals_of_every_pattern(name, output) -> None:
    joint = family(name, 4, output=output, order=[2, 0, 3, 1])()
    patterns = torch.tensor(list(itertools.product([False, True], repeat=4)))
    x = joint.sample((16,))
    marginal = joint.marginal(patterns)
    holes = torch.where(patterns, x, math.nan)
    assert_close(marginal.log_prob(holes), torch.stack([summed(joint, *row) for row in zip(x, patterns, strict=True)]))
    in_chain = patterns[:, [2, 0, 3, 1]].tolist()
    prefix = [row == sorted(row, reverse=True) for row in in_chain]
    assert marginal.method.tolist() == ["prefix" if yes else "enumeration" for yes in prefix]


@pytest.mark.parametrize("name", FIXED)
def test_marginals_under_draws_and_contexts(name) -> None:
    joint = draws_of(family(name, 4, context_dim=2)(torch.randn(3, 2)), 2, 1)
    patterns = torch.tensor([[True, False, True, True], [False, False, True, False], [True, True, False, False]])
    x = torch.randint(2, (3, 4)).double()
    got = joint.marginal(patterns[:, None, None]).log_prob(x[:, None, None])
    assert_close(got, torch.stack([summed(joint, *row) for row in zip(x, patterns, strict=True)]))
    aligned = joint.marginal(patterns).log_prob(x)  # row c meets context c
    assert_close(aligned, torch.stack([got[c, :, c] for c in range(3)], 1))


def test_many_states_are_summed_in_pieces(monkeypatch) -> None:
    joint = family("nade", 6, output=outputs.Categorical(3))()
    visible = torch.tensor([False, False, False, True, False, True]).repeat(5, 1)
    visible[1:3, 0] = True
    x = joint.sample((5,))
    expected = joint.marginal(visible).log_prob(x)
    monkeypatch.setattr("pyro_ar.budget.TURN", 40)
    assert_close(joint.marginal(visible).log_prob(x), expected)
    assert_close(expected[3], summed(joint, x[3], visible[3]))
    assert joint.given(x, visible).sample((2,)).shape == (2, 5, 6)


def test_trailing_hidden_variables_cost_nothing() -> None:
    joint = family("nade", 200, output=outputs.Categorical(17))()
    visible = torch.arange(200) < 120
    x = joint.sample((3,))
    assert joint.marginal(visible).method == np.array("prefix")
    assert_close(joint.marginal(visible).log_prob(x), joint.conditional_log_prob(x)[:, :120].sum(-1))


@pytest.mark.parametrize("output", [outputs.Bernoulli(), outputs.Normal()], ids=str)
def test_intractable_patterns_name_the_way_out(output) -> None:
    joint = family("nade", 40, output=output)()
    visible = torch.arange(40) >= 13
    assert joint.marginal(torch.arange(40) < 13).method == np.array("prefix")
    for ask in (lambda: joint.marginal(visible), lambda: joint.given(joint.sample(), visible)):
        with pytest.raises(IntractableError, match=r"estimate_log_marginal.*OrderlessNADE.*order"):
            ask()
    if output.num_states:
        assert joint.marginal(torch.arange(40) >= 12).method == np.array("enumeration")  # 2^12 is the bound


@pytest.mark.parametrize("name", MAKERS)
def test_completions_follow_the_posterior(name) -> None:
    """Chi-square over the states of the hidden cells, of 8000 draws, false alarm below 1e-5."""
    joint = family(name, 4, order=[1, 3, 0, 2])()
    x, visible = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([False, False, True, False])
    given = joint.given(x, visible)
    draws = given.sample((8000,))
    assert torch.equal(draws[:, 2], torch.ones(8000))
    states, counts = draws.unique(dim=0, return_counts=True)
    expected = given.log_prob(states).detach().exp() * 8000
    assert_close(expected.sum(), torch.tensor(8000.0))
    assert float(((counts - expected) ** 2 / expected).sum()) < 35  # 7 degrees of freedom


@pytest.mark.parametrize("name", MAKERS)
def test_the_mode_is_the_most_likely_completion(name) -> None:
    joint = family(name, 4, output=outputs.Categorical(3), order="random")()
    patterns = torch.rand(10, 4) < 0.5
    x = joint.sample((10,))
    given = joint.given(x, patterns)
    every = joint.enumerate_support().unsqueeze(1)
    assert_close(given.log_prob(given.mode), given.log_prob(every).max(0).values)


def test_any_order_answers_with_the_visible_first() -> None:
    made = family("orderless", 6, output=outputs.Categorical(3))
    joint, x, visible = made(), torch.randint(3, (8, 6)).double(), torch.rand(8, 6) < 0.5
    assert not joint.coherent
    marginal = joint.marginal(visible)
    assert set(marginal.method.tolist()) == {"visible-first chain"}
    for row, seen, got in zip(x, visible, marginal.log_prob(torch.where(visible, x, math.nan)), strict=True):
        order = [i for i in range(6) if seen[i]] + [i for i in range(6) if not seen[i]]
        terms = log_probs_by_hand(made, row, order)
        assert_close(got, terms[seen].sum())
    given = joint.given(x, visible)
    whole = torch.stack([log_probs_by_hand(made, row, [*seen.nonzero().flatten().tolist(), *(~seen).nonzero().flatten().tolist()])
                         for row, seen in zip(x, visible, strict=True)]).sum(-1)
    assert_close(given.log_prob(x), whole - marginal.log_prob(x))


# Weights are bound; families in Pyro.


def test_weights_are_bound_when_the_family_is_called() -> None:
    made = family("nade", 4)
    joint, x = made(), torch.ones(4)
    before = joint.log_prob(x).detach()
    made.net.output_bias = torch.nn.Parameter(torch.full_like(made.net.output_bias, 3.0))
    assert_close(joint.log_prob(x).detach(), before)
    assert not torch.equal(made().log_prob(x), before)


def bayesian(name, *args, **kwargs):
    made = family(name, *args, **kwargs)
    to_pyro_module_(made)
    for module in list(made.net.modules()):
        for parameter, value in list(module.named_parameters(recurse=False)):
            setattr(module, parameter, PyroSample(dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.ndim)))
    return made


@pytest.mark.parametrize("name", MAKERS)
def test_random_weights_are_sampled_once_per_call(name) -> None:
    made = bayesian(name, 3)
    x = torch.randint(2, (5, 3)).double()

    def model():
        joint = made()
        with pyro.plate("rows", 5):
            pyro.sample("x", joint, obs=x)

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    sites = {s for s, node in trace.nodes.items() if node["type"] == "sample" and not node["is_observed"]}
    assert len([s for s in sites if s != "rows"]) == len([n for n, _ in family(name, 3).net.named_parameters()])
    values = {n: trace.nodes[f"net.{n}"]["value"] for n in [n for n, _ in family(name, 3).net.named_parameters()]}
    assert_close(trace.nodes["x"]["log_prob"], family(name, 3)().with_tensors(values).log_prob(x))


@pytest.mark.parametrize("name", MAKERS)
def test_svi_with_vectorised_particles(name) -> None:
    """Weights of shape `(particles, 1, ...)` meet rows, contexts and a plate; the bound rises."""
    made = bayesian(name, 3, context_dim=2)
    x, context = torch.randint(2, (6, 3)).double(), torch.randn(6, 2)

    def model():
        joint = made(context)
        with pyro.plate("rows", 6):
            pyro.sample("x", joint, obs=x)

    guide = AutoNormal(model, init_scale=0.3)
    elbo = Trace_ELBO(num_particles=7, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    losses = [svi.step() for _ in range(60)]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-10:]) < sum(losses[:10])


def test_nuts_over_fvsbn_weights() -> None:
    made = bayesian("fvsbn", 3)
    x = torch.tensor([[1.0, 1.0, 0.0]]).repeat(30, 1)

    def model():
        joint = made()
        with pyro.plate("rows", 30):
            pyro.sample("x", joint, obs=x)

    mcmc = MCMC(NUTS(model), num_samples=30, warmup_steps=30, disable_progbar=True)
    mcmc.run()
    posterior = Autoregressive(made().net, {n: mcmc.get_samples()[f"net.{n}"] for n in made().tensors}, made.output)
    assert posterior.batch_shape == (30,)
    assert float(posterior.log_prob(x[0]).exp().mean().detach()) > 0.5


def test_laplace_needs_second_derivatives() -> None:
    """AutoLaplaceApproximation takes a Hessian through the lean chain: it falls back."""
    made = bayesian("nade", 2)
    x = torch.randint(2, (8, 2)).double()

    def model():
        joint = made()
        with pyro.plate("rows", 8):
            pyro.sample("x", joint, obs=x)

    guide = AutoLaplaceApproximation(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step()
    assert bool(guide.laplace_approximation().get_posterior().variance.isfinite().all())


@pytest.mark.parametrize("name", MAKERS)
def test_predictive_in_parallel(name) -> None:
    made = bayesian(name, 3)

    def model(rows):
        joint = made()
        with pyro.plate("rows", rows):
            return pyro.sample("x", joint)

    drawn = Predictive(model, num_samples=9, parallel=True)(4)
    assert drawn["x"].shape == (9, 4, 3)
    assert set(drawn["x"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("name", MAKERS)
def test_an_enumerated_class_as_context(name) -> None:
    made, x = family(name, 4, context_dim=3), torch.randint(2, (11, 4)).double()
    prior = torch.tensor([0.5, 0.3, 0.2])

    def model():
        pyro.module("family", made)
        with pyro.plate("rows", 11):
            y = pyro.sample("y", dist.Categorical(prior), infer={"enumerate": "parallel"})
            pyro.sample("x", made(torch.eye(3)[y]), obs=x)

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, lambda: None)
    expected = -(made(torch.eye(3)).log_prob(x[:, None]) + prior.log()).logsumexp(-1).sum()
    assert_close(loss, expected)
    for got, wanted in zip(*(torch.autograd.grad(t, list(made.parameters()), allow_unused=True) for t in (loss, expected)),
                           strict=True):
        assert_close(got, wanted)


def test_a_class_and_random_weights_and_particles_at_once() -> None:
    made, x = NADE(3, hidden=4, context_dim=2), torch.randint(2, (6, 3)).double()
    net = made(torch.zeros(2)).net

    def model():
        tensors = {n: pyro.sample(n, dist.Normal(0.0, 1.0).expand(p.shape).to_event(p.ndim))
                   for n, p in made.net.named_parameters()}
        with pyro.plate("rows", 6):
            y = pyro.sample("y", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", Autoregressive(net, tensors, made.output, context=torch.eye(2)[y]), obs=x)

    guide = AutoNormal(poutine.block(model, hide=["y"]))
    elbo = TraceEnum_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    assert all(math.isfinite(svi.step()) for _ in range(3))


def test_a_users_module_in_a_pyro_module() -> None:
    class Mine(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.family = family("made", 3)

        def forward(self, x):
            with pyro.plate("rows", len(x)):
                return pyro.sample("x", self.family(), obs=x)

    svi = SVI(Mine(), lambda x: None, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    x = torch.ones(10, 3)
    losses = [svi.step(x) for _ in range(50)]
    assert losses[-1] < losses[0]


class Plain(Net):
    """No steps of its own, only the promises."""

    def __init__(self) -> None:
        super().__init__((2, 2), outputs.Bernoulli())
        self.weight = torch.nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        m = x.shape[-1]
        return (x @ self.weight[:m, :m].tril(-1).mT).unsqueeze(-1)


def test_a_net_without_steps_will_do() -> None:
    joint = Family(Plain(), outputs.Bernoulli(), order="random")()
    assert_close(joint.log_prob(joint.enumerate_support()).logsumexp(0), torch.tensor(0.0), atol=1e-12, rtol=0)
    assert draws_of(joint, 5).sample((3,)).shape == (3, 5, 2, 2)
    assert joint.num_parameters == 16


class Noisy(Plain):
    """A net whose answers depend on its mode and on a buffer."""

    def __init__(self, strength=0.5) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(strength)
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, x):
        return self.drop(super().forward(x) + 1) + self.shift


def test_mode_and_buffers_are_read_at_the_call() -> None:
    made, x = Family(Noisy(), outputs.Bernoulli()), torch.ones(2, 2)
    noisy = made()
    assert len({float(noisy.log_prob(x).detach()) for _ in range(20)}) > 1
    made.eval()
    calm = made()
    assert len({float(calm.log_prob(x).detach()) for _ in range(20)}) == 1
    assert len({float(noisy.log_prob(x).detach()) for _ in range(20)}) > 1  # bound in training mode, and stays so
    made.net.drop.train()  # one module alone
    assert len({float(made().log_prob(x).detach()) for _ in range(20)}) > 1
    made.eval()
    made.net.shift = torch.ones(1)
    by_hand = made.net(x.reshape(1, 4)).squeeze()
    assert_close(made().log_prob(x), -torch.nn.functional.softplus(-by_hand).sum())
    assert float((made().log_prob(x) - calm.log_prob(x)).detach()) > 0.1
    assert_close(calm.log_prob(x), calm.log_prob(x))
    other = Family(Noisy(), outputs.Bernoulli()).eval()
    other.load_state_dict(made.state_dict())
    assert_close(other().log_prob(x), made().log_prob(x), rtol=0, atol=0)


def test_a_loaded_state_reaches_the_joints() -> None:
    """The buffers that a state dict brings, an order among them."""
    first, second = NADE(4, 3, order="random"), NADE(4, 3, order=[3, 2, 1, 0])
    second.load_state_dict(first.state_dict())
    x = torch.eye(4)
    assert_close(second().log_prob(x), first().log_prob(x), rtol=0, atol=0)


class Counted(Net):
    """Counts the variables it was passed and stepped through."""

    def __init__(self, n) -> None:
        super().__init__(n, outputs.Bernoulli())
        self.weight, self.steps, self.passed = torch.nn.Parameter(torch.randn(n)), 0, 0

    def forward(self, x):
        self.passed += x.shape[-1]
        m = x.shape[-1]
        return (torch.cat((x.new_zeros(len(x), 1), x[:, :-1].cumsum(1)), 1) * self.weight[:m]).unsqueeze(-1)

    def start(self, rows, context=None, order=None):
        return {"sum": self.weight.new_zeros(rows), "i": 0}

    def prefill(self, state, values):
        state["sum"] = state["sum"] + values.sum(1)
        state["i"] += values.shape[1]

    def advance(self, state, value):
        self.steps += 1
        if value is not None:
            self.prefill(state, value.unsqueeze(1))
        return (state["sum"] * self.weight[state["i"]]).unsqueeze(-1)


def test_only_what_is_asked_for_is_computed() -> None:
    """10 cells of 784 cost 10, and one hidden cell among 783 seen ones one step."""
    joint = Family(Counted(784), outputs.Bernoulli())()
    x, visible = torch.randint(2, (3, 784)).double(), torch.ones(784).bool()
    joint.net.passed = 0
    visible[10:] = False
    joint.marginal(visible).log_prob(x)
    assert joint.net.passed == 10
    joint.marginal(torch.zeros(784).bool()).log_prob(x)
    assert joint.net.passed == 11
    visible[:] = True
    visible[500] = False
    completed = joint.given(x, ~torch.eye(784)[783].bool())
    joint.net.steps = 0
    drawn = completed.sample((4,))
    assert joint.net.steps == 1
    assert torch.equal(drawn[..., :783], x[:, :783].expand(4, 3, 783))
    joint.net.passed = 0
    joint.marginal(visible).log_prob(x)
    assert joint.net.passed == 784  # both states of the hidden one, as rows of one pass


def test_a_net_that_is_none_is_refused() -> None:
    module = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"derives from par\.Net; got 'Linear'"):
        Family(module, outputs.Bernoulli())
    with pytest.raises(ValueError, match=r"derives from par\.Net; got 'Linear'"):
        Autoregressive(module, dict(module.named_parameters()), outputs.Bernoulli())


def test_samples_are_ordinary_tensors() -> None:
    made = family("made", 5)
    drawn = made().sample((3,)).requires_grad_()
    made().log_prob(drawn).sum().backward()  # tensors of inference mode would refuse
    drawn.data[0] = 1

    def loss(weights):
        joint = Autoregressive(made.net, weights, made.output)
        return joint.log_prob(joint.sample((4,))).sum()

    weights = {name: p.detach() for name, p in made.net.named_parameters()}
    assert any(bool(g.any()) for g in torch.func.grad(loss)(weights).values())


# Bad input.


@pytest.mark.parametrize(("ask", "message"), [
    (lambda: NADE(4, order=[0, 1, 1, 2]), r"order must hold permutations of 0 to 3"),
    (lambda: NADE(4)(order=[0, 1]), r"order must hold permutations"),
    (lambda: NADE(4, order="sorted"), r"order must be None, a permutation or 'random'"),
    (lambda: NADE(4, context_dim=3)(), r"context must be a floating tensor that ends in \(3,\)"),
    (lambda: NADE(4, context_dim=3)(torch.zeros(2, 4)), r"ends in \(3,\); got a float64 tensor of shape \(2, 4\)"),
    (lambda: NADE(4, context_dim=3)(torch.zeros(2, 3).long()), r"floating tensor"),
    (lambda: NADE(4, context_dim=1)(torch.full((1,), math.nan)), r"context must not hold NaN"),
    (lambda: NADE(4)(torch.zeros(3)), r"takes no context"),
    (lambda: NADE(0), r"event_shape must be"),
    (lambda: FVSBN(2.5), r"event_shape must be a positive int or a tuple of them; got 2.5"),
    (lambda: MADE(4, hidden=2.5), r"hidden must be positive ints"),
    (lambda: OverOrders(3, 2), r"wants an any-order family; got 'int'"),
    (lambda: outputs.Normal("a"), r"min_scale must be a number above 0; got 'a'"),
    (lambda: Autoregressive(NADE(4).net, dict(NADE(4).net.named_parameters()), outputs.Normal()),
     r"output must be as Bernoulli\(\), for which the net was made: 1 raw parameters and 1 features"),
    (lambda: NADE((2, -1)), r"event_shape must be"),
    (lambda: NADE(4, hidden=0), r"hidden must be"),
    (lambda: MADE(4, hidden=(3, 0)), r"hidden must be"),
    (lambda: NADE(4, activation="step"), r"activation must be one of"),
    (lambda: NADE(4, output=dist.Bernoulli), r"output must be one of par.outputs"),
    (lambda: NADE(4)().log_prob(torch.full((4,), 2.0)), r"states 0 to 1"),
    (lambda: NADE(4, output=outputs.Categorical(3))().log_prob(torch.full((4,), 0.5)), r"states 0 to 2"),
    (lambda: NADE(4, output=outputs.Normal())().log_prob(torch.full((4,), math.nan)), r"NaN"),
    (lambda: NADE(4)().log_prob(torch.zeros(5)), r"end in its event shape \(4,\)"),
    (lambda: OrderlessNADE(4)(order=torch.zeros(3, 4).long()), r"order must hold permutations"),
])
def test_bad_input_is_named(ask, message) -> None:
    with pytest.raises(ValueError, match=message):
        ask()


def test_weights_that_went_nan_are_named() -> None:
    made = MADE(4, hidden=(3, 3))
    with torch.no_grad():
        made.net.layers[1].bias[0] = math.nan
    joint = made()
    for ask in (lambda: joint.log_prob(torch.zeros(4)), joint.sample, lambda: joint.marginal(torch.ones(4).bool()).log_prob(torch.zeros(4)),
                lambda: joint.conditional_log_prob(torch.zeros(4))):
        with pytest.raises(ValueError, match=r"weight layers\.1\.bias must not hold NaN"):
            ask()


def test_wrong_weights_are_named() -> None:
    joint = NADE(4)()
    tensors = joint.tensors
    with pytest.raises(ValueError, match=r"weights must be named .*output_bias"):
        joint.with_tensors({name: t for name, t in tensors.items() if name != "output_bias"})
    with pytest.raises(ValueError, match=r"weight output_bias must be a tensor that ends in \(4, 1\)"):
        joint.with_tensors({**tensors, "output_bias": torch.zeros(3, 1)})
    with pytest.raises(ValueError, match="must broadcast"):
        joint.with_tensors({**tensors, "output_bias": torch.zeros(2, 4, 1), "hidden_bias": torch.zeros(3, 100)})


@pytest.mark.parametrize(("count", "expected"), [
    (FVSBN.count_parameters(784), 784 * 785 // 2),
    (FVSBN.count_parameters(5, outputs.Categorical(4)), 5 * 3 + 10 * 9),
    (NADE.count_parameters(784, 500), 783 * 500 + 500 + 784 * 501),
    (OrderlessNADE.count_parameters(10, 4), 40 + 40 + 4 + 10 * 5),
    (MADE.count_parameters(3, (2,)), 1 + 2 + 2 + 1 + 2 + 3),
])
def test_parameter_counts(count, expected) -> None:
    assert count == expected


@pytest.mark.parametrize("name", MAKERS)
def test_counts_agree(name) -> None:
    options = {"fvsbn": {}, "made": {"hidden": (6, 5)}}.get(name, {"hidden": 4})
    made = family(name, (2, 3), output=outputs.Categorical(3), context_dim=2)
    count = type(made).count_parameters((2, 3), output=outputs.Categorical(3), context_dim=2, **options)
    assert made.num_parameters == made(torch.zeros(2)).num_parameters == count
