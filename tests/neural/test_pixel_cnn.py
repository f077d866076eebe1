"""`PixelCNN`, masked and gated: against slow loops, its blind spot, its sampler against the naive one, and the kits."""

import itertools

import pytest
import torch

from stepping import draws_sample_as_alone, steps_as_it_passes
from torch.testing import assert_close

import pyro_ar as par

from pyro_ar import testing
from pyro_ar.neural import PixelCNN, PixelCNNNet
from pyro_ar.order import channels_within_pixels
from pyro_ar.outputs import Bernoulli, Categorical, Constant, DiscretisedLogisticMixture, Normal, PerVariable
from pyro_ar.testing.nets import NET_CHECKS, _prepared, _stepped

SHAPES = {"tall": (4, 3), "one channel": (1, 2, 3), "two channels": (2, 2, 3), "RGB": (3, 2, 3)}
OUTPUTS = {"bernoulli": Bernoulli(), "categorical": Categorical(3), "logistic mixture": DiscretisedLogisticMixture(5, 2)}
GATED = pytest.mark.parametrize("gated", [False, True], ids=["masked", "gated"])


def small(event_shape, output=None, context_dim=0, **options):
    hidden = 4 * (event_shape[0] if len(event_shape) == 3 else 1)
    return PixelCNN(event_shape, hidden, 1, output, context_dim, **{"kernel": 3, **options})


def randomised(family, scale=0.7):
    with torch.no_grad():
        for p in family.parameters():
            p.normal_().mul_(scale)
    return family


# The kit of nets; that of joints runs in test_families.py.


def net_cases():
    """Every shape, output and context, masked and gated; by default each shape once."""
    product = itertools.product([False, True], SHAPES, OUTPUTS, [0, 2])
    for i, (gated, shape, output, context_dim) in enumerate(product):
        slow = [] if i % 6 == (i // 6) % 6 else [pytest.mark.slow]
        yield pytest.param(gated, SHAPES[shape], OUTPUTS[output], context_dim, marks=slow,
                           id=f"{'gated' if gated else 'masked'}, {shape}, {output}, context {context_dim}")


@pytest.mark.parametrize(("gated", "shape", "output", "context_dim"), list(net_cases()))
def test_the_contract_is_kept(gated, shape, output, context_dim) -> None:
    net = small(shape, output, context_dim, gated=gated, block_kernel=3).net
    for check in NET_CHECKS:
        try:
            check(net)
        except testing.NotApplicable:
            assert check.__name__ == "net_sees_known_variables"


@GATED
def test_the_contract_is_kept_by_columns_of_several_kinds(gated) -> None:
    mixed = PerVariable([Normal(), Bernoulli(), Constant(), Categorical(4), Bernoulli(), Categorical(3)] * 2)
    net = small((2, 2, 3), mixed, 2, gated=gated, places=True).net
    for check in NET_CHECKS[:-1]:
        check(net)


# Slow loops.


def comes_before(dy, dx, into, out_of, own):
    """Whether an output group may see an input group of the pixel that is off by (dy, dx)."""
    if dy or dx:
        return dy < 0 or dx < 0
    return into < out_of if own == "A" else into <= out_of


def slow_conv(h, conv, groups, own):
    """A convolution `(inputs, height, width)`, cell by cell; `own` 'A' or 'B', 'above' (rows above only) or 'upto' (and the whole own row)."""
    inputs, height, width = h.shape
    outputs, _, rows, columns = conv.weight.shape
    left = conv.left
    top = rows if own == "above" else rows - 1
    answer = conv.bias.reshape(-1, 1, 1).expand(outputs, height, width).clone()
    for o, i, y, x in itertools.product(range(outputs), range(inputs), range(height), range(width)):
        for r, c in itertools.product(range(rows), range(columns)):
            dy, dx = r - top, c - left
            inside = 0 <= y + dy and 0 <= x + dx < width
            seen = own in ("above", "upto") or comes_before(dy, dx, i * groups // inputs, o * groups // outputs, own)
            if inside and seen:
                answer[o, y, x] += conv.weight[o, i, r, c] * h[i, y + dy, x + dx]
    return answer


def slow_gate(z, groups):
    answer = []
    for part in z.reshape(groups, -1, *z.shape[1:]):
        half = len(part) // 2
        answer.append(torch.tanh(part[:half]) / (1 + torch.exp(-part[half:])))
    return torch.cat(answer)


def slow_masked(body, f, groups, places):
    h = slow_conv(f, body.first, groups, "A") + places
    for block in body.blocks:
        inner = slow_conv(h.clamp(min=0), block["down"], groups, "B").clamp(min=0)
        inner = slow_conv(inner, block["middle"], groups, "B").clamp(min=0)
        h = h + slow_conv(inner, block["up"], groups, "B")
    return h


def slow_gated(body, f, groups, places):
    vertical = across = f
    for k, layer in enumerate(body.layers):
        z = slow_conv(vertical, layer["vertical"], 1, "upto" if k else "above")
        own = slow_conv(across, layer["horizontal"], groups, "B" if k else "A") + slow_conv(z, layer["link"], 1, "upto")
        own = own if k else own + places
        new = slow_conv(slow_gate(own, groups), layer["out"], groups, "B")
        across, vertical = across + new if k else new, slow_gate(z, 1)
    return across


@GATED
@pytest.mark.parametrize(("shape", "places"), [((1, 3, 4), True), ((3, 2, 3), False)], ids=str)
def test_a_pass_is_the_papers_loop(gated, shape, places, float64) -> None:
    net = randomised(small(shape, Normal(), gated=gated, places=places)).net
    x, groups = torch.randn(shape), shape[0]
    with torch.no_grad():
        h = (slow_gated if gated else slow_masked)(net.body, x, groups, net.places if places else 0.0)
        for conv in net.head:
            h = torch.where(h > 0, h, h.exp() - 1 if gated else 0)
            h = slow_conv(h, conv, groups, "B")
        expected = h.reshape(groups, 2, *shape[1:]).movedim(1, -1)
        assert_close(net(x.unsqueeze(0))[0], expected)


@GATED
def test_context_is_added_to_every_convolution(gated, float64) -> None:
    """The same as biases that are larger by the context's part."""
    told = randomised(small((3, 4), Normal(), 2, gated=gated)).net
    plain = small((3, 4), Normal(), gated=gated).net
    context = torch.randn(2)
    with torch.no_grad():
        state = {name: t for name, t in told.state_dict().items() if name != "context_weight"}
        more = (context @ told.context_weight).split(told.body.told)
        names = [f"body.layers.{k}.{part}.bias" for k in range(2) for part in ("vertical", "horizontal")] if gated else [
            "body.first.bias", "body.blocks.0.middle.bias"]
        for name, part in zip(names, more, strict=True):
            state[name] = state[name] + part
        plain.load_state_dict(state)
        x = torch.randn(1, 3, 4)
        assert_close(told(x, context.unsqueeze(0)), plain(x))


# What is seen.


def jacobian(net, draws=8):
    """Mean |d raw_i / d x_j| over some images, `(n, n)` in chain order."""
    n, total = net.num_variables, 0.0
    for k in range(draws):
        x = torch.randn(1, n, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        total = total + torch.autograd.functional.jacobian(lambda v: net.in_chain(v)[0], x).squeeze(2).abs().sum(1)
    return total / draws


def reached(channels, height, width, kernel, block_kernel, blocks):
    """Which variable the masked net can see, by walking its kernels: the first of type A, then up to `blocks` of type B."""
    places = list(itertools.product(range(height), range(width), range(channels)))
    def sees(at, other, size, own):
        dy, dx, half = other[0] - at[0], other[1] - at[1], size // 2
        return -half <= dy <= 0 and abs(dx) <= half and comes_before(dy, dx, other[2], at[2], own)
    table = torch.zeros(len(places), len(places), dtype=torch.bool)
    for i, at in enumerate(places):
        front = {at}
        for _ in range(blocks):
            front |= {p for q in front for p in places if sees(q, p, block_kernel, "B")}
        for p in {p for q in front for p in places if sees(q, p, kernel, "A")}:
            table[i, places.index(p)] = True
    return table


@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 3, 4)], ids=str)
def test_gated_sees_every_variable_before_and_no_other(shape) -> None:
    """No blind spot: pixel by pixel and channel by channel."""
    net = randomised(PixelCNN(shape, 18, 4, Normal(), kernel=3, gated=True).double(), 0.3).net
    n = net.num_variables
    assert torch.equal(jacobian(net) > 0, torch.ones(n, n).tril(-1).bool())


@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 3, 4)], ids=str)
def test_masked_has_its_blind_spot(shape) -> None:
    net = randomised(PixelCNN(shape, 30, 2, Normal(), kernel=3).double(), 0.5).net
    seen, n = jacobian(net) > 0, net.num_variables
    walked = reached(*shape, 3, 3, 2)
    assert torch.equal(seen, walked)
    before = torch.ones(n, n).tril(-1).bool()
    assert not bool((seen & ~before).any())
    if shape == (1, 5, 6):
        blind = before & ~reached(*shape, 3, 3, 20)  # however many blocks
        assert bool(blind[2 * 6 + 2, 1 * 6 + 4])  # two to the right in the row above
        assert int(blind.sum()) > 50


# Sampling.


def naive(net, rows, context=None):
    """By a whole pass for each variable."""
    x = torch.zeros(rows, net.num_variables, dtype=torch.float64)
    with torch.no_grad():
        for i in range(net.num_variables):
            raw = net(on_image(net, x), context)
            x[:, i] = net.output.sample(raw.flatten(1, -2)[:, chain(net)[i]])
    return on_image(net, x)


def chain(net):
    return torch.arange(net.num_variables) if net.chain_order is None else net.chain_order


def on_image(net, x):
    return torch.zeros_like(x).index_copy(1, chain(net), x).unflatten(-1, net.event_shape)


@GATED
@pytest.mark.parametrize(("shape", "output", "kernel", "block_kernel"), [
    ((1, 11, 9), Bernoulli(), 7, 3), ((6, 8), Categorical(4), 3, 5), ((3, 5, 5), DiscretisedLogisticMixture(17, 2), 5, 3)], ids=str)
def test_samples_are_the_naive_ones(gated, shape, output, kernel, block_kernel) -> None:
    """The same noise, the same decisions, in every row."""
    family = randomised(PixelCNN(shape, 6, 2, output, 3, kernel=kernel, block_kernel=block_kernel, gated=gated, places=kernel == 5).double(), 0.25)
    context = torch.randn(20, 3).double()
    torch.manual_seed(4)
    cached = family(context).sample()
    torch.manual_seed(4)
    slow = naive(family.net, 20, context)
    assert torch.equal(cached, slow)
    assert len(cached.flatten(1).unique(dim=0)) == 20


@GATED
def test_draws_of_weights_sample_the_naive_ones(gated) -> None:
    draws_sample_as_alone(randomised(PixelCNN((5, 4), 4, 1, Normal(1e-8), kernel=3, gated=gated).double(), 0.3))


@GATED
@pytest.mark.parametrize("known", [1, 4, 5, 27, 44, 59, 75])
def test_large_images_step_prefill_and_take_as_they_pass(gated, known) -> None:
    """More rows than a kernel reaches, so that rows fall out of memory; prefilled by a pass or by steps."""
    net, x, told = _prepared(PixelCNNNet((2, 8, 5), Categorical(3), 2, hidden=4, blocks=2, kernel=5, gated=gated, places=known % 2 == 0))
    with torch.no_grad():
        whole = net.in_chain(x, **told)
        assert_close(_stepped(net, x, told), whole)
        for before in (0, 13):
            steps_as_it_passes(net, x, told, whole, before, known)


@GATED
def test_memory_holds_the_rows_in_reach_only(gated) -> None:
    def held(height):
        net = PixelCNN((height, 9), 4, 2, kernel=5, gated=gated).net
        state = net.start(3)
        with torch.no_grad():
            for i in range(9 * (height - 1)):
                net.advance(state, torch.ones(3) if i else None)
        return sum(t.numel() for name in ("history", "line", "base") for t in getattr(state, name))

    assert held(6) == held(12)


@GATED
def test_hidden_rows_below_cost_nothing(gated) -> None:
    net = small((1, 6, 4), Bernoulli(), gated=gated).net
    x = torch.ones(2, 1, 6, 4)
    whole = net(x)
    x[:, :, 3:] = torch.nan
    early = net(x, stop=9)  # within the third row
    assert_close(early[:, :, :2], whole[:, :, :2])
    assert bool(early.isfinite().all())


# Counts, files, refusals, learning.


@GATED
@pytest.mark.parametrize("case", ["plain", "RGB", "columns of several kinds"])
def test_parameters_are_those_that_reach_an_answer(gated, case, float64) -> None:
    shape = (1, 2, 3) if case == "plain" else (3, 2, 3)
    kinds = [Bernoulli(), Constant(), Categorical(3)] * 5 + [Bernoulli(), Constant(), Categorical(4)]  # nothing reads the last one
    # By position in the event, in which R comes first as a whole.
    output = PerVariable(kinds).in_order(channels_within_pixels(shape).argsort().tolist()) if case == "columns of several kinds" else Categorical(4)
    options = {"kernel": 3, "gated": gated, "places": case == "plain"}
    family = randomised(PixelCNN(shape, 6, 1, output, 2, **options))
    with torch.no_grad():  # positive, so that no unit is at rest, and small, so that no gate is shut
        for p in family.parameters():
            p.abs_().mul_(0.2)
    x = torch.stack([torch.randint(o.num_states, (400,)) for o in output.variables(family.net.num_variables)], -1).double().unflatten(-1, shape)
    touched = 0
    raw = family.net.in_chain(x.flatten(1)[:, chain(family.net)], torch.rand(400, 2))
    each = output.variables(family.net.num_variables)
    read = torch.zeros_like(raw[0])
    for i, place in enumerate(chain(family.net).tolist()):
        read[i, :each[place].raw] = torch.randn(each[place].raw)
    for grad in torch.autograd.grad((raw * read * torch.randn(400, 1, 1)).sum(), list(family.net.parameters())):
        touched += int((grad != 0).sum())
    assert family.num_parameters == touched
    assert PixelCNN.count_parameters(shape, 6, 1, output, 2, **options) == touched


def test_counting_allocates_nothing_large() -> None:
    assert PixelCNN.count_parameters((1, 500, 500), 8, 2) == PixelCNN.count_parameters((1, 8, 8), 8, 2)


@GATED
def test_files_hold_everything(gated, tmp_path) -> None:
    family = randomised(PixelCNN((3, 4, 5), 6, 2, Categorical(4), 2, kernel=5, block_kernel=3, gated=gated, places=True))
    par.save(family, tmp_path / "family.safetensors")
    again = par.load(tmp_path / "family.safetensors")
    context = torch.randn(7, 2)
    x = family(context).sample()
    assert type(again) is PixelCNN
    assert again.net.body.__class__ is family.net.body.__class__
    assert torch.equal(again(context).log_prob(x), family(context).log_prob(x))


@pytest.mark.parametrize(("arguments", "options", "message"), [
    ((16,), {}, "event_shape must be an image"),
    (((2, 2, 4, 4),), {}, "event_shape must be an image"),
    (((6, 6),), {}, "a kernel of 7 sees 4 rows and 7 columns"),
    (((3, 9),), {}, "a kernel of 7 sees 4 rows"),
    (((4, 4),), {"kernel": 3, "block_kernel": 5}, "a block_kernel of 5"),
    (((8, 8),), {"kernel": 4}, "kernel must be an odd number"),
    (((8, 8),), {"kernel": 1}, "kernel must be an odd number"),
    (((3, 8, 8),), {"hidden": 8}, "multiple of the channels of the image, 3"),
    (((8, 8),), {"hidden": 0}, "hidden must be"),
    (((8, 8),), {"blocks": -1}, "blocks must be"),
    (((8, 8),), {"order": "random"}, "PixelCNN takes no order but its own"),
    (((8, 8),), {"order": list(range(63, -1, -1))}, "PixelCNN takes no order but its own"),
    (((3, 8, 8),), {"hidden": 6, "order": list(range(192))}, "PixelCNN takes no order but its own"),
    (((8, 8),), {"order": [0, 1]}, "permutations of 0 to 63"),
    (((8, 8),), {"context_dim": -1}, "context_dim must be"),
])
@GATED
def test_bad_input_is_refused(arguments, options, message, gated) -> None:
    with pytest.raises(ValueError, match=message):
        PixelCNN(*arguments, gated=gated, **options)


def test_wrong_contexts_and_orders_are_refused_at_the_call() -> None:
    family = small((2, 3), context_dim=2)
    for context in (None, torch.randn(3), torch.tensor([torch.nan, 0.0])):
        with pytest.raises(ValueError, match="context must"):
            family(context)
    with pytest.raises(ValueError, match="takes no context"):
        small((2, 3))(torch.randn(2))
    with pytest.raises(ValueError, match="no order but its own"):
        family(torch.randn(2), order=torch.arange(5, -1, -1))


def test_its_own_order_is_taken_and_told() -> None:
    order = channels_within_pixels((3, 2, 3))
    assert torch.equal(small((3, 2, 3), order=order)().order, order)
    assert torch.equal(small((3, 2, 3))().order, order)
    assert torch.equal(small((2, 3), order=list(range(6)))().order, torch.arange(6))


def test_outputs_of_their_own_stand_at_their_positions_of_the_event() -> None:
    """R binary, G of three states, B real."""
    output = PerVariable([Bernoulli()] * 6 + [Categorical(3)] * 6 + [Normal()] * 6)
    joint = small((3, 2, 3), output)()
    x = joint.sample((500,))
    assert set(x[:, 0].unique().tolist()) == {0.0, 1.0}
    assert set(x[:, 1].unique().tolist()) == {0.0, 1.0, 2.0}
    assert len(x[:, 2].unique()) == 3000
    assert bool(joint.log_prob(x).isfinite().all())


def held_out_nats(family, train, test, **options) -> float:
    par.fit(family, train, progress=False, accelerator="cpu", **options)
    with torch.no_grad():
        return float(-family.eval()().log_prob(test).mean())


def digits():
    """Black and white, shuffled: 1437 rows to train on, 360 held out."""
    data = par.data.digits(binary=True)
    x = data.x.float()[torch.randperm(len(data.x), generator=torch.Generator().manual_seed(0))].reshape(-1, 8, 8)
    return x[:1437], x[1437:]


@pytest.mark.slow
@GATED
def test_digits_are_better_than_the_chains_and_the_trees(gated) -> None:
    train, test = digits()
    tables = [float(-kind.from_data(train.flatten(1), pseudocount=0.5, num_states=2).log_prob(test.flatten(1)).mean())
              for kind in (par.MarkovChain, par.ChowLiuTree)]
    assert held_out_nats(PixelCNN((8, 8), 16, 2, gated=gated), train, test, lr=3e-3, epochs=40) < min(tables) - 1
