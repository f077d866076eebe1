"""Every net keeps the contract: the kit of nets, on each net, output and event shape; and the kit finds nets that break it."""

import contextlib
import inspect

import pytest
import torch

from registered import ANY_SHAPE, IMAGE_VARIANTS, OF_IMAGES, VARIANTS, nets
from torch import nn
from torch.testing import assert_close

from pyro_ar import outputs, testing
from pyro_ar.neural import AnyOrderNet, Autoregressive, LinearNet, MADENet, NADENet, Net
from pyro_ar.outputs import PerVariable
from pyro_ar.testing.nets import NET_CHECKS, _prepared, _stepped


class Recent(Net):
    """A user's net: a softplus of the variable before and of a running sum; steps itself by running again."""

    def __init__(self, event_shape, output, context_dim=0) -> None:
        super().__init__(event_shape, output, context_dim)
        self.weight = nn.Parameter(torch.randn(2 * output.inputs + context_dim, output.raw))
        self.register_buffer("shift", torch.randn(output.raw))

    def forward(self, x, context=None):
        features = self.output.encode(x)
        before = torch.cat((torch.zeros_like(features[:, :1]), features[:, :-1]), 1)
        features = [before, before.cumsum(1)]
        if context is not None:
            features.append(context.unsqueeze(1).expand(-1, x.shape[1], -1))
        return torch.nn.functional.softplus(torch.cat(features, -1) @ self.weight) + self.shift


class Rows(Net):
    """A user's net that knows where variables lie: a causal convolution over columns, read bottom row first."""

    layout = "event"

    def __init__(self, event_shape, output, context_dim=0) -> None:
        super().__init__(event_shape, output, context_dim)
        height, width = self.event_shape
        self.chain_order = (torch.arange(height * width).reshape(height, width).flip(0).flatten())
        self.mix = nn.Parameter(torch.randn(2 * output.inputs + context_dim, output.raw))

    def forward(self, x, context=None, stop=None):
        features = self.output.encode(x)
        left = torch.cat((torch.zeros_like(features[:, :, :1]), features[:, :, :-1]), 2)
        below = torch.cat((features[:, 1:], torch.zeros_like(features[:, :1])), 1)
        seen = [left.cumsum(2), below]
        if context is not None:
            seen.append(context[:, None, None].expand(-1, *x.shape[1:], -1))
        return torch.tanh(torch.cat(seen, -1)) @ self.mix


class Counting(AnyOrderNet):
    """A user's any-order net that leaves `given_known` and its steps as they come."""

    def __init__(self, event_shape, output, context_dim=0) -> None:
        super().__init__(event_shape, output, context_dim)
        self.weight = nn.Parameter(torch.randn(self.num_variables, output.inputs, 4))
        self.out = nn.Parameter(torch.randn(self.num_variables, 4, output.raw))
        self.by_context = nn.Parameter(torch.randn(context_dim, 4)) if context_dim else None

    def forward(self, x, context=None, order=None):
        order = torch.arange(x.shape[1]).expand(x.shape) if order is None else order
        added = torch.einsum("rmi,rmih->rmh", self.output.at(order).encode(x), self.weight[order]) + 0.1
        h = torch.cat((torch.zeros_like(added[:, :1]), added.cumsum(1)[:, :-1]), 1)
        h = h if context is None else h + (context @ self.by_context).unsqueeze(1)
        return torch.einsum("rmh,rmhk->rmk", h.tanh(), self.out[order])


REGISTERED = nets(ANY_SHAPE)
NETS = {
    **REGISTERED,
    **nets(VARIANTS),
    "MADE of several masks": lambda *a: MADENet(*a, hidden=(7, 5), masks=3, direct=True),
    "a user's": Recent,
    "a user's any-order": Counting,
}
MIXED = PerVariable([outputs.Normal(), outputs.Bernoulli(), outputs.Constant(), outputs.Categorical(4)])
OUTPUTS = [outputs.Bernoulli(), outputs.Categorical(3), outputs.Categorical(4, "one-hot"), outputs.Categorical(3, "level"),
           outputs.Normal(), outputs.MixtureOfNormals(2), MIXED, PerVariable.of_states([3, 1, 2, 4])]


def checked(net) -> int:
    kept = 0
    for check in NET_CHECKS:
        with contextlib.suppress(testing.NotApplicable):
            check(net)
            kept += 1
    return kept


@pytest.mark.parametrize(("output", "context_dim"), [
    pytest.param(output, told, id=f"{output}-{told}", marks=pytest.mark.slow if told == 0 and output is not OUTPUTS[0] else ())
    for output in OUTPUTS for told in (0, 2)])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_the_contract_is_kept(make, output, context_dim) -> None:
    net = make((1, 2, 2), output, context_dim)
    assert checked(net) == len(NET_CHECKS) - (not net.any_order)


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_the_contract_is_kept_by_a_single_variable(make) -> None:
    checked(make(1, outputs.Categorical(3), 2))


@pytest.mark.parametrize("context_dim", [0, 2])
def test_the_contract_is_kept_in_a_layout_of_its_own(context_dim) -> None:
    checked(Rows((2, 3), outputs.Categorical(3), context_dim))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_the_contract_is_kept_on_images(name) -> None:
    net = nets(OF_IMAGES)[name]((2, 2, 3), outputs.Categorical(3), 2)
    assert checked(net) == len(NET_CHECKS) - 1


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("name", IMAGE_VARIANTS)
def test_the_contract_is_kept_by_variants_on_images(name, context_dim) -> None:
    net = IMAGE_VARIANTS[name]((2, 2, 3), context_dim=context_dim).net
    assert checked(net) == len(NET_CHECKS) - 1


WIDE = {"MADE, wide": lambda *a: MADENet(*a, hidden=(200, 3, 90), masks=2, orders=True, direct=True)}


@pytest.mark.parametrize("cut", [1, 39, 40, 41, 85])
@pytest.mark.parametrize("name", [*REGISTERED, *nets(VARIANTS), *WIDE])
def test_long_chains_step_prefill_and_take_as_they_pass(name, cut) -> None:
    """Longer than any block of steps."""
    make = {**NETS, **WIDE}[name]
    net, x, known = _prepared(make(90, outputs.Categorical(3), 2))
    with torch.no_grad():
        whole = net.in_chain(x, **known)
        assert_close(_stepped(net, x, known), whole)
        state = net.start(len(x), **known)
        net.advance(state, None)
        net.prefill(state, x[:, :cut])
        net.advance(state, None)
        index = torch.tensor([4, 4, 1])
        taken = net.take(state, index)
        for i in range(cut + 1, 90):
            assert_close(net.advance(state, x[:, i - 1]), whole[:, i])
            assert_close(net.advance(taken, x[index, i - 1]), whole[index, i])


@pytest.mark.parametrize("name", REGISTERED)
def test_every_earlier_variable_is_seen(name) -> None:
    # Of few units with thresholds some see nothing.
    wide = {"MADE": lambda *a: MADENet(*a, hidden=(60, 60))}.get(name, NETS[name])
    net, x, known = _prepared(wide(6, outputs.Normal(), 0))
    known = {name: t[:1] for name, t in known.items()}
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v, **known).sum(-1).squeeze(0), x[:1]).squeeze(1)
    assert bool((jacobian[torch.tril_indices(6, 6, -1).unbind()] != 0).all())
    assert torch.equal(jacobian.triu(), torch.zeros(6, 6).double())


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("name", NETS)
def test_samples_are_those_of_the_naive_way(name, context_dim) -> None:
    """With the same noise, running the whole net again for each variable takes the same decisions for every row."""
    net, _, known = _prepared(NETS[name]((3, 5), outputs.Categorical(3), context_dim))
    rows = 5
    joint = Autoregressive(net, dict(net.named_parameters()), net.output, known.get("order"), known.get("context"))
    torch.manual_seed(1)
    drawn = joint.sample(() if known else (rows,)).flatten(1)
    x = torch.zeros(rows, 15).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for i in range(15):
            x[:, i] = net.output.sample(net.in_chain(x, **known)[:, i])
    assert len(x.unique()) == 3
    assert torch.equal(x, drawn.gather(1, known["order"]) if "order" in known else drawn)


@pytest.mark.parametrize("name", [name for name, make in REGISTERED.items() if make.func.broadcasts])
def test_context_broadcasts(name) -> None:
    net, x, _ = _prepared(NETS[name]((2, 2), outputs.Categorical(3), 2))
    context = torch.randn(4, 1, 2).double()
    with torch.no_grad():
        expected = torch.stack([net(x, c.expand(5, 2)) for c in context])
        assert_close(net(x, context), expected)


class Peeks(Recent):
    def forward(self, x, context=None):
        return super().forward(x, context) + 1e-3 * x.unsqueeze(-1)


class ReadsTheEnd(Recent):
    def forward(self, x, context=None):
        return super().forward(x, context) + 1e-3 * x.shape[1]


class MixesRows(Recent):
    def forward(self, x, context=None):
        raw = super().forward(x, context)
        return raw - 1e-3 * raw.mean(0, keepdim=True)


class Drops(Recent):
    def forward(self, x, context=None):
        return nn.functional.dropout(super().forward(x, context), 0.1, training=True)


class StepsWrong(Recent):
    def advance(self, state, value):
        return super().advance(state, None if value is None else value * (state["i"] != 2))


class PrefillsWrong(Recent):
    def prefill(self, state, values):
        super().prefill(state, values if values.shape[-1] == 1 else values.flip(-1))


class ForgetsTheRun(Recent):
    """A second run of known variables takes its first for done."""

    def prefill(self, state, values):
        if state.get("run"):
            values = torch.cat((torch.zeros_like(values[:, :1]), values[:, 1:]), 1)
        state["run"] = True
        super().prefill(state, values)


class TakesViews(Recent):
    def advance(self, state, value):
        if value is not None:
            state["x"][:, state["i"]] = value
            state["i"] += 1
        return super().advance(state, None)

    def take(self, state, index):
        return {**state, "x": state["x"][:1].expand(len(index), -1).clone() if len(index) < 3 else state["x"]}


class Remembers(Recent):
    def forward(self, x, context=None):
        if not hasattr(self, "first"):
            self.first = self.weight.detach().clone()
        return super().forward(x, context) + self.first.sum()


class NoRule(Recent):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.cell = nn.GRU(1, 1, batch_first=True)

    def forward(self, x, context=None):
        before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
        return super().forward(x, context) + self.cell(before.unsqueeze(-1))[0]


class KnowsWrong(Counting):
    def given_known(self, x, known, context=None):
        return super().given_known(x, known, context).roll(1, -2)


@pytest.mark.parametrize(("broken", "check"), [
    (Peeks, "net_is_causal"), (ReadsTheEnd, "net_stops_early"), (MixesRows, "net_rows_are_apart"), (Drops, "net_is_repeatable"),
    (StepsWrong, "net_steps"), (PrefillsWrong, "net_prefills"), (ForgetsTheRun, "net_prefills"), (TakesViews, "net_takes_rows"), (Remembers, "net_reloads"),
    (NoRule, "net_draws_weights"), (KnowsWrong, "net_sees_known_variables")])
def test_the_kit_finds_what_is_broken(broken, check) -> None:
    found = next(c for c in NET_CHECKS if c.__name__ == check)
    with pytest.raises((AssertionError, RuntimeError)):
        found(broken(4, outputs.Categorical(3), 0))
    if not issubclass(broken, Counting):
        found(Recent(4, outputs.Categorical(3), 0))


def test_every_check_is_in_the_kit() -> None:
    from pyro_ar.testing import nets

    assert {name for name, f in inspect.getmembers(nets, inspect.isfunction) if name.startswith("net_")} == {c.__name__ for c in NET_CHECKS}


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("hidden", [(1,), (7,), (3, 9), (30, 30, 30)])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_wires_are_counted(n, hidden, context_dim) -> None:
    output = outputs.Categorical(3)
    net = MADENet(n, output, context_dim, hidden=hidden)
    wires = sum(int(layer.ends.sum()) for layer in net.layers)
    rest = sum(p.numel() for name, p in net.named_parameters() if not name.endswith(".weight"))
    assert net.num_parameters == MADENet.count(n, output, context_dim, hidden=hidden) == wires + rest


def test_counting_allocates_nothing_large() -> None:
    assert LinearNet.count(10**6, outputs.Bernoulli()) == 10**6 * (10**6 + 1) // 2
    assert NADENet.count(10**6, outputs.Bernoulli(), hidden=10**6) == (2 * 10**6 - 1) * 10**6 + 2 * 10**6
