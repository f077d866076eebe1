"""`WaveNet`: against slow loops, its receptive field, label and sequence, its queues against the naive sampler, and the kits."""

import itertools

import pytest
import torch

from stepping import steps_as_it_passes
from torch.testing import assert_close

import pyro_ar as par

from pyro_ar import testing
from pyro_ar.neural import WaveNet, WaveNetNet
from pyro_ar.outputs import Bernoulli, Categorical, Constant, DiscretisedLogisticMixture, Normal, PerVariable
from pyro_ar.testing.nets import NET_CHECKS, _prepared, _stepped

OUTPUTS = {"bernoulli": Bernoulli(), "categorical": Categorical(3), "logistic mixture": DiscretisedLogisticMixture(5, 2)}
KINDS = {"plain": {}, "three taps": {"kernel": 3, "dilations": (1, 2, 1)}, "no places": {"places": False}}


def small(event_shape, output=None, context_dim=0, **options):
    return WaveNet(event_shape, 4, output, context_dim, **{"skip": 5, **options})


def randomised(family, scale=0.7):
    with torch.no_grad():
        for p in family.parameters():
            p.normal_().mul_(scale)
    return family


# The kits.


def net_cases():
    """Every kind, shape, output and context (none, a label, a label and a sequence); by default each kind of each with another."""
    for i, (kind, shape, output, told) in enumerate(itertools.product(KINDS, [(6,), (3, 2, 1)], OUTPUTS, ["nothing", "label", "both"])):
        yield pytest.param(KINDS[kind], shape, OUTPUTS[output], told, id=f"{kind}, {shape}, {output}, {told}",
                           marks=[] if i % 9 in (2, 3, 7) and i < 36 else [pytest.mark.slow])


@pytest.mark.parametrize(("options", "shape", "output", "told"), list(net_cases()))
def test_the_contract_is_kept(options, shape, output, told) -> None:
    context = {"nothing": {}, "label": {"context_dim": 2}, "both": {"context_dim": 2 + 6 * 2, "local_dim": 2}}[told]
    net = small(shape, output, **context, **options).net
    for check in NET_CHECKS:
        try:
            check(net)
        except testing.NotApplicable:
            assert check.__name__ == "net_sees_known_variables"


@pytest.mark.parametrize("output", [Categorical(3), PerVariable([Normal(), Bernoulli(), Constant(), Categorical(4), Categorical(3)])], ids=["one", "several"])
def test_the_contract_is_kept_by_single_variables_and_several_kinds(output) -> None:
    net = small(5 if isinstance(output, PerVariable) else 1, output, 2).net
    for check in NET_CHECKS[:-1]:
        check(net)


def label_and_sequence(output):
    return randomised(small(3, output, 2 + 3 * 1, order=[2, 0, 1], local_dim=1))(torch.randn(5))


def three_taps(output):
    return randomised(small((1, 2, 2), output, kernel=3, dilations=(1,), places=False))()


def joint_cases():
    """What the kit of all families does not ask, with every output and check; by default each setting once."""
    for (i, setting), (j, output), check in itertools.product(enumerate([label_and_sequence, three_taps]), enumerate(OUTPUTS), testing.CHECKS):
        yield pytest.param(setting, OUTPUTS[output], check, marks=[] if j == i else [pytest.mark.slow], id=f"{setting.__name__}, {output}, {check.__name__}")


@pytest.mark.parametrize(("setting", "output", "check"), list(joint_cases()))
def test_conforms(setting, output, check, float64) -> None:
    try:
        check(setting(output))
    except testing.NotApplicable as reason:
        pytest.skip(str(reason))


# Slow loops.


def slow_pass(net, x, label, sequence):
    """Raw parameters of one row, variable by variable, from the equations."""
    n, width = net.num_variables, net.hidden
    zero = torch.zeros(width, dtype=x.dtype)
    streams = [(net.output.encode(x[i - 1]) @ net.enter if i else zero) + net.places[i if len(net.places) > 1 else 0] for i in range(n)]
    skips = [net.skip_bias.clone() for _ in range(n)]
    for k, layer in enumerate(net.layers):
        part = slice(2 * width * k, 2 * width * (k + 1))
        inputs, taps = list(streams), layer.weight.shape[-1]
        for i in range(n):
            z = layer.bias.clone()
            for back in range(taps):
                before = i - back * net.dilations[k]
                z = z + layer.weight[:, :, taps - 1 - back] @ (inputs[before] if before >= 0 else zero)
            if label is not None:
                z = z + label @ net.global_weight[:, part]
            if sequence is not None:
                z = z + sequence[i] @ net.local_weight[:, part]
            out = (torch.tanh(z[:width]) / (1 + torch.exp(-z[width:]))) @ layer.out
            if k < len(net.layers) - 1:
                streams[i] = inputs[i] + out[:width]
                out = out[width:]
            skips[i] = skips[i] + out
    answers = []
    for skip in skips:
        for linear in net.head:
            skip = linear.weight @ torch.where(skip > 0, skip, skip.exp() - 1) + linear.bias
        answers.append(skip)
    return torch.stack(answers)


@pytest.mark.parametrize("options", [{}, {"kernel": 3, "dilations": (1, 4, 2)}, {"places": False, "dilations": (3,)}], ids=str)
@pytest.mark.parametrize("told", ["nothing", "label", "sequence", "both"])
def test_a_pass_is_the_papers_loop(options, told, float64) -> None:
    label = torch.randn(3) if told in ("label", "both") else None
    sequence = torch.randn(9, 2) if told in ("sequence", "both") else None
    parts = [t.flatten() for t in (label, sequence) if t is not None]
    net = randomised(small(9, Normal(), sum(len(t) for t in parts), local_dim=0 if sequence is None else 2, **options)).net
    x = torch.randn(9)
    with torch.no_grad():
        found = net(x.unsqueeze(0), torch.cat(parts).unsqueeze(0) if parts else None)
        assert_close(found[0], slow_pass(net, x, label, sequence))


# What is seen.


@pytest.mark.parametrize(("kernel", "dilations", "lags"), [(2, None, range(1, 12)), (2, (1, 2), range(1, 5)), (3, (2,), (1, 3, 5)), (2, (4, 4), (1, 5, 9))])
def test_each_variable_sees_its_receptive_field(kernel, dilations, lags) -> None:
    """Lag 1 enters directly, and each layer adds multiples of its dilation; nothing else is seen, nor anything later."""
    net = randomised(WaveNet(12, 8, Normal(), kernel=kernel, dilations=dilations).double(), 0.5).net
    x = torch.randn(1, 12, dtype=torch.float64)
    seen = torch.autograd.functional.jacobian(lambda v: net(v)[0], x).squeeze(2).abs().sum(1) > 0
    assert seen.tolist() == [[i - j in lags for j in range(12)] for i in range(12)]


def test_the_label_reaches_all_and_the_sequence_its_own_and_later_variables(float64) -> None:
    net = randomised(WaveNet(6, 8, Normal(), 2 + 6 * 3, local_dim=3, dilations=(1, 2)), 0.5).net
    x, context = torch.randn(1, 6), torch.randn(1, 20)
    seen = torch.autograd.functional.jacobian(lambda c: net(x, c)[0], context).squeeze(2).abs().sum(1) > 0
    assert bool(seen[:, :2].all())
    by_place = seen[:, 2:].reshape(6, 6, 3)
    assert bool((by_place == by_place[..., :1]).all())
    assert by_place[..., 0].tolist() == [[i - j in (0, 2) for j in range(6)] for i in range(6)]  # it enters behind each convolution


def test_without_places_the_weights_are_the_same_everywhere(float64) -> None:
    net = randomised(WaveNet(12, 5, Normal(), places=False, dilations=(1, 2))).net
    x = torch.randn(1, 12)
    with torch.no_grad():
        assert_close(net(x)[:, 7], net(x.roll(-2, -1))[:, 5])
        own = randomised(WaveNet(12, 5, Normal(), dilations=(1, 2))).net
        assert not torch.allclose(own(x)[:, 7], own(x.roll(-2, -1))[:, 5])


# Sampling.


@pytest.mark.parametrize(("output", "kernel"), [(Bernoulli(), 2), (Categorical(4), 3), (DiscretisedLogisticMixture(17, 2), 2)], ids=str)
def test_samples_are_the_naive_ones(output, kernel) -> None:
    """The same noise, the same decisions, in every row."""
    family = randomised(WaveNet((7, 10), 5, output, 3 + 70, skip=6, kernel=kernel, local_dim=1).double(), 0.4)
    net, context = family.net, torch.randn(20, 73).double()
    torch.manual_seed(4)
    cached = family(context).sample()
    torch.manual_seed(4)
    slow = torch.zeros(20, 70).double()
    with torch.no_grad():
        for i in range(70):
            slow[:, i] = output.sample(net(slow, context)[:, i])
    assert torch.equal(cached.flatten(1), slow)
    assert len(slow.unique(dim=0)) == 20


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("known", [1, 13, 40, 64, 89])
def test_long_chains_step_prefill_and_take_as_they_pass(known, kernel) -> None:
    net, x, told = _prepared(WaveNetNet(90, Categorical(3), 2 + 90, hidden=4, skip=5, kernel=kernel, local_dim=1))
    with torch.no_grad():
        whole = net.in_chain(x, **told)
        assert_close(_stepped(net, x, told), whole)
        for before in (0, 12):
            steps_as_it_passes(net, x, told, whole, before, known)


def test_a_queue_is_as_long_as_its_kernel_spans() -> None:
    net = WaveNet(100, 4, kernel=3, dilations=(1, 8, 32)).net
    assert [len(queue) for queue in net.start(2).queues] == [2 * d + 1 for d in (1, 8, 32)]


# Counts, files, refusals, learning.


@pytest.mark.parametrize("case", ["plain", "both contexts", "several kinds", "single", "three taps"])
def test_parameters_are_those_that_reach_an_answer(case, float64) -> None:
    n, output, context_dim, options = 7, Categorical(4), 0, {}
    if case == "both contexts":
        context_dim, options = 2 + 7 * 3, {"local_dim": 3}
    elif case == "several kinds":
        output = PerVariable([Bernoulli(), Constant(), Categorical(3), Bernoulli(), Bernoulli(), Categorical(3), Categorical(5)])
    elif case == "single":
        n = 1
    elif case == "three taps":
        options = {"kernel": 3}
    family = randomised(small(n, output, context_dim, **options), 0.3)
    each = output.variables(n)
    x = torch.stack([torch.randint(o.num_states, (300,)) for o in each], -1).double()
    raw = family.net(x, torch.randn(300, context_dim) if context_dim else None)
    read = torch.stack([torch.arange(output.raw) < o.raw for o in each]) * torch.randn(300, n, output.raw)
    grads = torch.autograd.grad((raw * read).sum(), list(family.net.parameters()), allow_unused=True)
    touched = sum(int((g != 0).sum()) for g in grads if g is not None)
    assert family.num_parameters == touched
    assert WaveNet.count_parameters(n, 4, output, context_dim, skip=5, **options) == touched


def test_default_dilations_double_within_the_chain() -> None:
    assert WaveNet(784).net.dilations == tuple(2**k for k in range(10))
    assert WaveNet(64).net.dilations == (1, 2, 4, 8, 16, 32)
    assert WaveNet(65, kernel=3).net.dilations == (1, 2, 4, 8, 16, 32)
    assert WaveNet(64, kernel=3).net.dilations == (1, 2, 4, 8, 16)
    assert WaveNet(2).net.dilations == (1,)


def test_files_hold_everything(tmp_path) -> None:
    family = randomised(small((2, 3), Categorical(4), 2 + 6, order="random", kernel=3, dilations=[2, 1], local_dim=1, places=False))
    par.save(family, tmp_path / "family.safetensors")
    again = par.load(tmp_path / "family.safetensors")
    context = torch.randn(7, 8)
    x = family(context).sample()
    assert type(again) is WaveNet
    assert again.net.dilations == (2, 1)
    assert torch.equal(again(context).log_prob(x), family(context).log_prob(x))


@pytest.mark.parametrize(("options", "message"), [
    ({"dilations": (1, 9)}, "must fit into the 9 variables"),
    ({"dilations": (1, 4), "kernel": 4}, "must fit into the 9 variables"),
    ({"kernel": 10}, "must fit into the 9 variables"),
    ({"dilations": ()}, "dilations must be positive ints"),
    ({"dilations": (0,)}, "dilations must be positive ints"),
    ({"kernel": 1}, "kernel must be 2 taps or more"),
    ({"hidden": 0}, "hidden must be a positive int"),
    ({"skip": 0}, "skip must be a positive int"),
    ({"context_dim": 8, "local_dim": 1}, "context_dim must be 9"),
    ({"context_dim": 9, "local_dim": -1}, "context_dim must be 9"),
    ({"order": [0, 1]}, "permutations of 0 to 8"),
])
def test_bad_input_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        WaveNet(9, **options)


def test_wrong_contexts_are_refused_at_the_call() -> None:
    family = small(4, context_dim=2 + 4, local_dim=1)
    for context in (None, torch.randn(2), torch.randn(5), torch.full((6,), torch.nan)):
        with pytest.raises(ValueError, match="context must"):
            family(context)


@pytest.mark.slow
def test_digits_are_better_than_the_chains_and_the_trees() -> None:
    data = par.data.digits(binary=True)
    x = data.x.float()[torch.randperm(len(data.x), generator=torch.Generator().manual_seed(0))]
    train, test = x[:1437], x[1437:]
    tables = [float(-kind.from_data(train, pseudocount=0.5, num_states=2).log_prob(test).mean()) for kind in (par.MarkovChain, par.ChowLiuTree)]
    family = WaveNet(64, 16, skip=32)
    par.fit(family, train, lr=3e-3, epochs=40, progress=False, accelerator="cpu")
    with torch.no_grad():
        assert float(-family.eval()().log_prob(test).mean()) < min(tables) - 1
