"""`RowLSTM` and `DiagonalBiLSTM`: against loops over pixels, what they see, their sampler against the naive one, and the kits."""

import itertools

import pytest
import torch

from stepping import draws_sample_as_alone, steps_as_it_passes
from test_pixel_cnn import OUTPUTS, SHAPES, chain, digits, held_out_nats, jacobian, naive, randomised, slow_conv
from torch.nn.functional import pad
from torch.testing import assert_close

import pyro_ar as par

from pyro_ar.neural import DiagonalBiLSTM, RowLSTM
from pyro_ar.order import channels_within_pixels
from pyro_ar.outputs import Bernoulli, Categorical, Constant, DiscretisedLogisticMixture, Normal, PerVariable
from pyro_ar.testing.nets import NET_CHECKS, _prepared, _stepped

KINDS = [RowLSTM, DiagonalBiLSTM]
EACH = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def small(kind, event_shape, output=None, context_dim=0, layers=1, **options):
    hidden = 2 * (event_shape[0] if len(event_shape) == 3 else 1)
    return kind(event_shape, hidden, layers, output, context_dim, **{"kernel": 3, **options})


# The kit of nets; that of joints runs in test_families.py.


def net_cases():
    """Every shape, output and context; by default each shape once, colours by two channels."""
    for i, (kind, shape, output, context_dim) in enumerate(itertools.product(KINDS, SHAPES, OUTPUTS, [0, 2])):
        slow = [] if i % 6 == (i // 6 + 1) % 6 and shape != "RGB" else [pytest.mark.slow]
        yield pytest.param(kind, SHAPES[shape], OUTPUTS[output], context_dim, marks=slow, id=f"{kind.__name__}, {shape}, {output}, context {context_dim}")


@pytest.mark.parametrize(("kind", "shape", "output", "context_dim"), list(net_cases()))
def test_the_contract_is_kept(kind, shape, output, context_dim) -> None:
    for check in NET_CHECKS[:-1]:  # the last one is of any-order nets
        check(small(kind, shape, output, context_dim).net)


@EACH
def test_the_contract_is_kept_by_columns_of_several_kinds(kind) -> None:
    mixed = PerVariable([Normal(), Bernoulli(), Constant(), Categorical(4), Bernoulli(), Categorical(3)] * 2)
    for check in NET_CHECKS[:-1]:
        check(small(kind, (2, 2, 3), mixed, 2, places=True).net)


# Loops over pixels.


def gates_of(z, groups):
    """O, f, i and g of all units, from gates that lie group by group."""
    return [torch.cat([part.chunk(4)[k] for part in z.chunk(groups)]) for k in range(4)]


def cell(z, c, groups):
    o, f, i, g = gates_of(z, groups)
    c = c / (1 + (-f).exp()) + g.tanh() / (1 + (-i).exp())
    return c.tanh() / (1 + (-o).exp()), c


def slow_rows(layer, h, groups):
    """Section 3.1, pixel by pixel."""
    z = slow_conv(h, layer.into[0], groups, "B")
    _, height, width = z.shape
    states, cells = torch.zeros(len(z) // 4, height, width), torch.zeros(len(z) // 4, height, width)
    taps = layer.state_weight[0].chunk(len(layer.state_weight[0]) // len(states))
    for y, x in itertools.product(range(height), range(width)):
        now, before = z[:, y, x], torch.zeros(len(states))
        if y:
            before = cells[:, y - 1, x]
            for k, tap in enumerate(taps):
                other = x + k - len(taps) // 2
                now = now + (states[:, y - 1, other] @ tap if 0 <= other < width else 0)
        states[:, y, x], cells[:, y, x] = cell(now, before, groups)
    return states


def slow_sweep(z, weight, groups, step):
    """Section 3.2 from one side, pixel by pixel: step 1 from the left, -1 from the right."""
    _, height, width = z.shape
    states, cells = torch.zeros(len(z) // 4, height, width), torch.zeros(len(z) // 4, height, width)
    beside, above = weight.chunk(2)
    for y, x in itertools.product(range(height), range(width)[::step]):
        now, before = z[:, y, x], torch.zeros(len(states))
        if y:
            now = now + states[:, y - 1, x] @ above
        if 0 <= x - step < width:
            now, before = now + states[:, y, x - step] @ beside, cells[:, y, x - step]
        states[:, y, x], cells[:, y, x] = cell(now, before, groups)
    return states


def slow_diagonals(layer, h, groups):
    left, right = (slow_sweep(slow_conv(h, layer.into[d], groups, "B"), layer.state_weight[d], groups, 1 - 2 * d) for d in (0, 1))
    for y in range(1, h.shape[1]):
        left[:, y] += right[:, y - 1]
    return left


@EACH
@pytest.mark.parametrize(("shape", "places"), [((1, 3, 4), True), ((5, 3), False), ((3, 3, 3), False)], ids=str)
def test_a_pass_is_the_papers_loop(kind, shape, places, float64) -> None:
    net = randomised(small(kind, shape, Normal(), layers=2, places=places)).net
    groups, beyond = net.channels, int(kind is DiagonalBiLSTM)
    x = torch.randn(shape)
    with torch.no_grad():
        h = slow_conv(pad(x.reshape(groups, *shape[-2:]), (0, beyond)), net.body.first, groups, "A") + (pad(net.places, (0, beyond)) if places else 0)
        for layer in net.body.layers:
            states = (slow_rows if kind is RowLSTM else slow_diagonals)(layer, h, groups)
            h = h + slow_conv(states, layer.up, groups, "B")
        h = h[..., :shape[-1]]
        for conv in net.head:
            h = slow_conv(torch.where(h > 0, h, h.exp() - 1), conv, groups, "B")
        expected = h.reshape(groups, 2, *shape[-2:]).movedim(1, -1).reshape(*shape, 2)
        assert_close(net(x.unsqueeze(0))[0], expected)


@EACH
def test_context_is_added_to_every_convolution(kind, float64) -> None:
    """The same as biases that are larger by the context's part."""
    told, plain = (randomised(small(kind, (3, 4), Normal(), width, layers=2)).net for width in (2, 0))
    context = torch.randn(2)
    with torch.no_grad():
        state = {name: t for name, t in told.state_dict().items() if name != "context_weight"}
        names = ["body.first.bias", *(f"body.layers.{k}.into.{d}.bias" for k in range(2) for d in range(1 if kind is RowLSTM else 2))]
        for name, part in zip(names, (context @ told.context_weight).split(told.body.told), strict=True):
            assert float(part.abs().min()) > 0
            state[name] = state[name] + part
        plain.load_state_dict(state)
        x = torch.randn(1, 3, 4)
        assert_close(told(x, context.unsqueeze(0)), plain(x))


@EACH
def test_cells_remember_to_begin_with(kind) -> None:
    for shape, groups in (((4, 4), 1), ((3, 4, 4), 3)):
        for conv in small(kind, shape).net.body.layers[0].into:
            o, f, i, g = gates_of(conv.bias, groups)
            assert bool((f == 1).all())
            assert not bool(torch.cat((o, i, g)).any())


# What is seen.


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 6, 3), (3, 3, 3)], ids=str)
def test_diagonals_see_every_variable_before_and_no_other(shape) -> None:
    """Pixel by pixel and channel by channel, by a single layer."""
    net = randomised(DiagonalBiLSTM(shape, 6, 1, Normal(), kernel=3).double(), 0.4).net
    n = net.num_variables
    assert torch.equal(jacobian(net) > 0, torch.ones(n, n).tril(-1).bool())


def walked(channels, height, width, layers):
    """Which variable a pixel of the RowLSTM may see, from node to node: a stream reads states of its pixel up to its channel, states read the stream to the
    left and up to their channel, and all channels of the states of the three pixels above; at the bottom the stream is a masked kernel of 3 by 3.
    """
    places = list(itertools.product(range(height), range(width), range(channels)))
    seen: dict = {}
    for y, x, c in places:
        left = [(y, x - 1, k) for k in range(channels)] + [(y, x, k) for k in range(c)]
        seen["stream", 0, y, x, c] = {p for p in left + [(y - 1, x + d, k) for d in (-1, 0, 1) for k in range(channels)] if p in places}
    for layer in range(1, layers + 1):
        for y, x, c in places:
            reads = [("stream", layer - 1, y, x - 1, k) for k in range(channels)] + [("stream", layer - 1, y, x, k) for k in range(c + 1)]
            reads += [("state", layer, y - 1, x + d, k) for d in (-1, 0, 1) for k in range(channels)]
            seen["state", layer, y, x, c] = set().union(*(seen.get(node, set()) for node in reads))
        for y, x, c in places:
            seen["stream", layer, y, x, c] = set().union(*(seen["state", layer, y, x, k] | seen["stream", layer - 1, y, x, k] for k in range(c + 1)))
    return torch.tensor([[p in seen["stream", layers, *at] for p in places] for at in places])


@pytest.mark.parametrize(("shape", "layers"), [((1, 4, 7), 1), ((1, 4, 7), 2), ((3, 3, 4), 1)], ids=str)
def test_rows_see_their_triangle(shape, layers) -> None:
    net = randomised(RowLSTM(shape, 6, layers, Normal(), kernel=3).double(), 0.4).net
    seen, expected = jacobian(net) > 0, walked(*shape, layers)
    assert torch.equal(seen, expected)
    n = net.num_variables
    before = torch.ones(n, n).tril(-1).bool()
    assert not bool((seen & ~before).any())
    if shape == (1, 4, 7):
        assert not bool(seen[1 * 7 + 1, 6])  # the end of the row above is out of reach of the first pixels
        assert bool((before & ~seen).any())


# Sampling.


@EACH
@pytest.mark.parametrize(("shape", "output", "kernel"), [
    ((1, 11, 9), Bernoulli(), 7), ((6, 8), Categorical(4), 3), ((3, 5, 5), DiscretisedLogisticMixture(17, 2), 5)], ids=str)
def test_samples_are_the_naive_ones(kind, shape, output, kernel) -> None:
    """The same noise, the same decisions, in every row."""
    family = randomised(kind(shape, 6, 2, output, 3, kernel=kernel, places=kernel == 5).double(), 0.25)
    told = torch.randn(20, 3).double()
    torch.manual_seed(4)
    cached = family(told).sample()
    torch.manual_seed(4)
    slow = naive(family.net, 20, told)
    assert torch.equal(cached, slow)
    assert len(cached.flatten(1).unique(dim=0)) == 20


@EACH
def test_draws_of_weights_sample_the_naive_ones(kind) -> None:
    draws_sample_as_alone(randomised(kind((5, 4), 4, 1, Normal(1e-8), kernel=3).double(), 0.3))


@EACH
@pytest.mark.parametrize("known", [1, 4, 5, 27, 44, 59, 75])
def test_large_images_step_prefill_and_take_as_they_pass(kind, known) -> None:
    """Prefilled by a pass or by steps, from the start and from within a row."""
    net, x, told = _prepared(kind((2, 8, 5), 4, 2, Categorical(3), 2, kernel=5, places=known % 2 == 0).net)
    with torch.no_grad():
        whole = net.in_chain(x, **told)
        if known == 1:
            assert_close(_stepped(net, x, told), whole)
        for before in (0, 13):
            steps_as_it_passes(net, x, told, whole, before, known)


@EACH
def test_memory_holds_the_rows_in_reach_only(kind) -> None:
    def held(height):
        net = kind((height, 9), 4, 2, kernel=5).net
        state = net.start(3)
        with torch.no_grad():
            for i in range(9 * (height - 1)):
                net.advance(state, torch.ones(3) if i else None)
        tensors = itertools.chain(state.history, state.line, state.base, *state.memory)
        return sum(t.untyped_storage().nbytes() for t in tensors)

    assert held(6) == held(12)


@EACH
def test_hidden_rows_below_cost_nothing(kind) -> None:
    net = small(kind, (1, 6, 4), Bernoulli()).net
    x = torch.ones(2, 1, 6, 4)
    whole = net(x)
    x[:, :, 3:] = torch.nan
    early = net(x, stop=9)  # within the third row
    assert_close(early[:, :, :2], whole[:, :, :2])
    assert bool(early.isfinite().all())


# Counts, files, refusals, learning.


@EACH
@pytest.mark.parametrize("case", ["two rows", "three rows", "RGB", "columns of several kinds"])
def test_parameters_are_those_that_reach_an_answer(kind, case, float64) -> None:
    shape = {"two rows": (1, 2, 3), "three rows": (1, 3, 3)}.get(case, (3, 2, 3))
    kinds = [Bernoulli(), Constant(), Categorical(3)] * 5 + [Bernoulli(), Constant(), Categorical(4)]  # nothing reads the last one
    # By position in the event, in which R comes first as a whole.
    output = PerVariable(kinds).in_order(channels_within_pixels(shape).argsort().tolist()) if case == "columns of several kinds" else Categorical(4)
    options = {"kernel": 3, "places": len(shape) == 3}
    family = randomised(kind(shape, 3, 2, output, 2, **options), 0.3)
    each = output.variables(family.net.num_variables)
    x = torch.stack([torch.randint(o.num_states, (200,)) for o in each], -1).double().unflatten(-1, shape)
    raw = family.net.in_chain(x.flatten(1)[:, chain(family.net)], torch.rand(200, 2))
    read = torch.zeros_like(raw[0])
    for i, place in enumerate(chain(family.net).tolist()):
        read[i, :each[place].raw] = torch.randn(each[place].raw)
    gradients = torch.autograd.grad((raw * read * torch.randn(200, 1, 1)).sum(), list(family.net.parameters()))
    assert family.num_parameters == sum(int((grad != 0).sum()) for grad in gradients)
    assert kind.count_parameters(shape, 3, 2, output, 2, **options) == family.num_parameters


@EACH
def test_counting_allocates_nothing_large(kind) -> None:
    assert kind.count_parameters((1, 500, 500), 8, 2) == kind.count_parameters((1, 8, 8), 8, 2)


@EACH
def test_files_hold_everything(kind, tmp_path) -> None:
    options = {"row_kernel": 5} if kind is RowLSTM else {}
    family = randomised(kind((3, 4, 5), 6, 2, Categorical(4), 2, kernel=5, places=True, **options))
    par.save(family, tmp_path / "family.safetensors")
    again = par.load(tmp_path / "family.safetensors")
    told = torch.randn(7, 2)
    x = family(told).sample()
    assert type(again) is kind
    assert torch.equal(again(told).log_prob(x), family(told).log_prob(x))


@pytest.mark.parametrize(("arguments", "options", "message"), [
    ((16,), {}, "event_shape must be an image"),
    (((1, 16),), {}, "a kernel of 7 sees 4 rows and 7 columns"),
    (((2, 2, 4, 4),), {}, "event_shape must be an image"),
    (((6, 6),), {}, "a kernel of 7 sees 4 rows and 7 columns"),
    (((8, 8),), {"kernel": 4}, "kernel must be an odd number"),
    (((3, 8, 8),), {"hidden": 8}, "multiple of the channels of the image, 3"),
    (((8, 8),), {"hidden": 0}, "hidden must be"),
    (((8, 8),), {"layers": 0}, "layers must be"),
    (((8, 8),), {"layers": 1.5}, "layers must be"),
    (((8, 8),), {"order": "random"}, "takes no order but its own"),
    (((3, 8, 8),), {"hidden": 6, "order": list(range(192))}, "takes no order but its own"),
    (((8, 8),), {"context_dim": -1}, "context_dim must be"),
])
@EACH
def test_bad_input_is_refused(arguments, options, message, kind) -> None:
    with pytest.raises(ValueError, match=message):
        kind(*arguments, **options)


@pytest.mark.parametrize(("size", "message"), [(2, "row_kernel must be an odd number"), (-1, "row_kernel must be"), (5, "a row_kernel of 5 sees 5 columns")])
def test_kernels_along_rows_fit(size, message) -> None:
    with pytest.raises(ValueError, match=message):
        RowLSTM((4, 4), 4, kernel=3, row_kernel=size)


@EACH
def test_wrong_contexts_and_orders_are_refused_at_the_call(kind) -> None:
    family = small(kind, (2, 3), context_dim=2)
    for told in (None, torch.randn(3), torch.tensor([torch.nan, 0.0])):
        with pytest.raises(ValueError, match="context must"):
            family(told)
    with pytest.raises(ValueError, match="no order but its own"):
        family(torch.randn(2), order=torch.arange(5, -1, -1))
    assert torch.equal(small(kind, (3, 2, 3))().order, channels_within_pixels((3, 2, 3)))


@EACH
def test_two_far_pixels_are_learnt(kind) -> None:
    """A coin in the first pixel is told again by the last one of the row three below, all else is noise: beyond the first kernel, so it is remembered."""
    torch.manual_seed(0)
    x = torch.randint(0, 2, (128, 4, 3)).float()
    x[:, 3, 2] = x[:, 0, 0]
    family = kind((4, 3), 12, 2, kernel=3)
    adam = torch.optim.Adam(family.parameters(), 0.03)
    for _ in range(40):
        adam.zero_grad()
        family.training_log_prob(x).mean().neg().backward()
        adam.step()
    with torch.no_grad():
        assert float(family().conditional_log_prob(x)[:, 3, 2].mean()) > -0.1


@pytest.mark.slow
@EACH
def test_digits_are_better_than_the_chains_and_the_trees(kind) -> None:
    train, test = digits()
    tables = [float(-table.from_data(train.flatten(1), pseudocount=0.5, num_states=2).log_prob(test.flatten(1)).mean())
              for table in (par.MarkovChain, par.ChowLiuTree)]
    assert held_out_nats(kind((8, 8), 16, 2), train, test, lr=3e-3, epochs=40) < min(tables) - 1
