"""Elimination against listing and plain loops: random structures, zero probabilities, extreme potentials."""

import math
import random
import time

import numpy as np
import pytest
import torch

from listing import (
    chain_by_logs,
    log_softmax,
    marginal_by_listing,
    mode_by_listing,
    table_by_listing,
)

from pyro_ar.checks import IntractableError
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain
from pyro_ar.tables.elimination import evidence, forward, log_total, make_plan

SEEDS = range(25)


def random_net(seed, *, zeros=False, dtype=torch.float64):
    """A random DAG over 1 to 7 variables of 1 to 4 states, its numbers scrambled, up to 3 parents each."""
    pick = random.Random(seed)
    n = pick.randint(1, 7)
    sizes = [pick.choice([1, 2, 2, 3, 4]) for _ in range(n)]
    names = pick.sample(range(n), n)
    parents = [()] * n
    for place, v in enumerate(names):
        parents[v] = tuple(pick.sample(names[:place], pick.randint(0, min(3, place))))
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for v in range(n):
        table = torch.randn(*[sizes[u] for u in parents[v]], sizes[v], generator=generator, dtype=dtype)
        if zeros:  # forbid cells, but never a whole row
            forbidden = torch.rand(table.shape, generator=generator) < 0.4
            forbidden[..., 0] &= ~forbidden[..., 1:].all(-1)
            table = table.masked_fill(forbidden & (sizes[v] > 1), -math.inf)
        tables.append(table)
    return parents, tables, sizes, generator


def net_by_hand(parents, tables):
    def log_p(state):
        total = 0.0
        for v, (p, table) in enumerate(zip(parents, tables, strict=True)):
            row = table.detach()
            for u in p:
                row = row[state[u]]
            total += log_softmax(row.tolist())[state[v]]
        return total

    return log_p


def rows_and_patterns(sizes, count, generator):
    x = torch.stack([torch.randint(k, (count,), generator=generator) for k in sizes], -1)
    visible = torch.rand(count, len(sizes), generator=generator) < torch.rand(count, 1, generator=generator)
    return x, visible


@pytest.mark.parametrize("zeros", [False, True], ids=["positive", "with zeros"])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_nets_answer_as_listing_does(seed, zeros):
    parents, tables, sizes, generator = random_net(seed, zeros=zeros)
    net = BayesNet(parents, tables)
    table = table_by_listing(net_by_hand(parents, tables), sizes)
    x, visible = rows_and_patterns(sizes, 12, generator)
    assert math.fsum(math.exp(v) for v in table.values()) == pytest.approx(1, abs=1e-12)
    expected = [marginal_by_listing(table, row, seen) for row, seen in zip(x.tolist(), visible.tolist(), strict=True)]
    torch.testing.assert_close(net.log_prob(x), torch.tensor([table[tuple(r)] for r in x.tolist()], dtype=torch.float64))
    torch.testing.assert_close(net.marginal(visible).log_prob(x), torch.tensor(expected, dtype=torch.float64))
    possible = [i for i, e in enumerate(expected) if e > -math.inf]
    if not possible:
        return
    given = net.given(x[possible].double(), visible[possible])
    for i, completion in zip(possible, given.mode.tolist(), strict=True):
        assert tuple(map(int, completion)) in mode_by_listing(table, x[i].tolist(), visible[i].tolist())
    completion = given.sample()
    assert bool((completion == x[possible])[visible[possible]].all())
    joint = torch.tensor([table[tuple(map(int, r))] for r in completion.tolist()], dtype=torch.float64)
    assert bool((joint > -math.inf).all())
    torch.testing.assert_close(given.log_prob(completion), joint - torch.tensor(expected, dtype=torch.float64)[possible])


@pytest.mark.parametrize("seed", SEEDS)
def test_both_ways_of_elimination_agree_in_value_and_gradient(seed):
    parents, tables, sizes, generator = random_net(seed)
    tables = [t.requires_grad_() for t in tables]
    net = BayesNet(parents, tables)
    x, visible = rows_and_patterns(sizes, 9, generator)
    plan = make_plan(net.scopes, net.num_states)
    fast = log_total(plan, list(zip(net.factors(logs=False), net.scopes, strict=True)),
                     evidence(x.double(), visible, sizes, logs=False))
    slow, _ = forward(plan, list(zip(net.factors(), net.scopes, strict=True)), evidence(x.double(), visible, sizes))
    torch.testing.assert_close(fast, slow)
    for a, b in zip(*(torch.autograd.grad(t.sum(), tables) for t in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_finite_differences():
    parents, tables, sizes, generator = random_net(3)
    x, visible = rows_and_patterns(sizes, 4, generator)

    def total(*tables):
        return BayesNet(parents, tables).marginal(visible).log_prob(x)

    assert torch.autograd.gradcheck(total, [t.requires_grad_() for t in tables])
    assert torch.autograd.gradgradcheck(total, tables)  # Laplace guides differentiate twice


@pytest.mark.parametrize("seed", range(8))
def test_batches_of_tables_and_extra_left_dimensions(seed):
    parents, _, sizes, generator = random_net(seed)
    batched = [torch.randn(*([3] if v % 2 else [2, 1]), *[sizes[u] for u in p], sizes[v], generator=generator,
                           dtype=torch.float64) for v, p in enumerate(parents)]
    net = BayesNet(parents, batched)
    assert net.batch_shape == torch.broadcast_shapes(*([3] if v % 2 else [2, 1] for v in range(len(sizes))))
    x, visible = rows_and_patterns(sizes, 5, generator)
    x, visible = x[:, None, None], visible[:, None, None]  # 5 rows against the whole batch
    answer, joint = net.marginal(visible).log_prob(x), net.log_prob(x)
    left = (5, *([1] * (2 - len(net.batch_shape))), *net.batch_shape)
    assert answer.shape == torch.Size(left)
    batched = [t.expand(2, 3, *t.shape[-1 - len(p):]) for t, p in zip(batched, parents, strict=True)]
    for i in range(2):
        for j in range(3):
            one = table_by_listing(net_by_hand(parents, [t[i, j] for t in batched]), sizes)
            for r in range(5):
                row, seen = x[r, 0, 0].tolist(), visible[r, 0, 0].tolist()
                assert answer.expand(5, 2, 3)[r, i, j].item() == pytest.approx(marginal_by_listing(one, row, seen), abs=1e-10)
                assert joint.expand(5, 2, 3)[r, i, j].item() == pytest.approx(one[tuple(row)], abs=1e-10)


@pytest.mark.parametrize("joint", [
    FullTable(torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])),
    MarkovChain(torch.tensor([0.0, -math.inf]), torch.tensor([[[0.0, -math.inf], [1.0, 2.0]]])),
    BayesNet([(), (0,)], [torch.tensor([0.0, -math.inf]), torch.tensor([[-math.inf, 0.0], [0.0, 0.0]])]),
    FullyIndependent(torch.tensor([[0.0, -math.inf], [0.0, 0.0]])),
], ids=lambda j: type(j).__name__)
def test_evidence_of_probability_zero_has_finite_gradients(joint):
    tensors = {name: t.clone().requires_grad_() for name, t in joint.tensors.items()}
    joint = joint.with_tensors(tensors)
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    for visible in (torch.tensor([True, True]), torch.tensor([True, False]), torch.tensor([False, False])):
        answer = joint.marginal(visible).log_prob(x)
        assert not bool(answer.isnan().any())
        possible = answer[answer > -math.inf]
        for wanted in (answer.sum(), answer.exp().sum(), possible.sum()):
            for g in torch.autograd.grad(wanted, list(tensors.values()), retain_graph=True, allow_unused=True):
                assert g is None or bool(g.isfinite().all())
    impossible = (joint.log_prob(x) == -math.inf).nonzero()[0]
    with pytest.raises(ValueError, match="visible cells of positive probability"):
        joint.given(x[impossible], torch.tensor([True, True]))


EXTREME = [(scale, dtype) for scale in (1, 10, 30, 100, 1000) for dtype in (torch.float32, torch.float64)]


@pytest.mark.parametrize("K", [2, 16])
@pytest.mark.parametrize(("scale", "dtype"), EXTREME)
def test_chains_of_784_variables_match_a_float64_loop(K, scale, dtype):
    generator = torch.Generator().manual_seed(784 + K)
    initial = (scale * torch.randn(K, generator=generator, dtype=dtype)).requires_grad_()
    transitions = (scale * torch.randn(783, K, K, generator=generator, dtype=dtype)).requires_grad_()
    x, visible = rows_and_patterns([K] * 784, 6, generator)
    answer = MarkovChain(initial, transitions).marginal(visible).log_prob(x)
    gradients = torch.autograd.grad(answer.sum(), [initial, transitions])
    total, *expected = chain_by_logs(initial.detach(), transitions.detach(), x, visible)
    np.testing.assert_allclose(answer.detach(), total, rtol=1e-12 if dtype == torch.float64 else 2e-6)
    for g, e in zip(gradients, expected, strict=True):  # entries are counts: up to 6 rows
        np.testing.assert_allclose(g, e, rtol=0, atol=1e-8 if dtype == torch.float64 else 1e-3)


def test_long_ordinary_chains_need_no_logarithms():
    generator = torch.Generator().manual_seed(0)
    chain = MarkovChain(torch.randn(16, generator=generator), 2 * torch.randn(783, 16, 16, generator=generator))
    x, visible = rows_and_patterns([16] * 784, 20, generator)
    factors = list(zip(chain.factors(logs=False), chain.scopes, strict=True))
    fast = log_total(make_plan(chain.scopes, chain.num_states), factors,
                     evidence(x.float(), visible, chain.num_states, logs=False))
    assert fast is not None  # else the benchmark is lost


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_digit_is_lost_on_the_way_to_underflow(n, dtype):
    """Potentials from harmless to far beyond the smallest number, through the denormal ones."""
    for cost in [*range(20, 130, 3), *range(660, 780, 7)]:
        table = torch.tensor([[0.0, -float(cost)], [-float(cost), 0.0]], dtype=dtype)
        chain = MarkovChain(torch.zeros(2, dtype=dtype), table.expand(n - 1, 2, 2).clone().requires_grad_())
        x = torch.zeros(n, dtype=dtype)
        x[-1] = 1
        visible = torch.zeros(n, dtype=torch.bool)
        visible[[0, -1]] = True
        answer = chain.marginal(visible).log_prob(x)
        total, _, by_step = chain_by_logs(np.zeros(2), chain.transition_logits.detach(), x[None], visible[None])
        assert answer.item() == pytest.approx(total.item(), rel=1e-6 if dtype == torch.float32 else 1e-13)
        (gradient,) = torch.autograd.grad(answer, chain.transition_logits)
        np.testing.assert_allclose(gradient, by_step, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("scale", [1, 30, 100, 1000])
def test_trees_with_a_batch_of_tables_stay_finite(scale):
    generator = torch.Generator().manual_seed(5)
    parents = [()] + [(int(torch.randint(i, (1,), generator=generator)),) for i in range(1, 64)]
    exact = [scale * torch.randn(3, *[5] * len(p), 5, generator=generator, dtype=torch.float64) for p in parents]
    x, visible = rows_and_patterns([5] * 64, 7, generator)
    answers, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        tables = [t.to(dtype).requires_grad_() for t in exact]
        answers.append(ChowLiuTree(parents, tables).marginal(visible[:, None]).log_prob(x[:, None]))
        gradients.append(torch.autograd.grad(answers[-1].sum(), tables))
    torch.testing.assert_close(answers[0].double(), answers[1], rtol=1e-5, atol=0)
    for g, e in zip(*gradients, strict=True):
        assert bool(g.isfinite().all())
        torch.testing.assert_close(g.double(), e, rtol=0, atol=1e-2 if scale > 100 else 1e-3)


def test_a_hub_of_many_messages_does_not_underflow():
    K, n = 17, 300  # naive Bayes: the product of 299 messages is about 17 ** -299
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(K, generator=generator).requires_grad_()
    leaves = torch.randn(n - 1, K, K, generator=generator).requires_grad_()
    net = BayesNet([()] + [(0,)] * (n - 1), [root, *leaves])
    x, visible = rows_and_patterns([K] * n, 5, generator)
    visible[:, 0] = False
    answer = net.marginal(visible).log_prob(x)
    by_class = root.double().log_softmax(-1) + sum(
        leaves[v - 1].double().log_softmax(-1)[:, x[:, v]].T * visible[:, v, None] for v in range(1, n))
    torch.testing.assert_close(answer.double(), by_class.logsumexp(-1), rtol=1e-5, atol=0)
    g, e = (torch.autograd.grad(t.sum(), leaves)[0] for t in (answer, by_class.logsumexp(-1)))
    torch.testing.assert_close(g, e, rtol=0, atol=1e-4)


def test_the_log_backend_of_pyro_loses_terms_silently():
    """Why elimination is our own: `torch_log` says -inf (or too little) where the answer is finite."""
    import opt_einsum

    wide = torch.tensor([[0.0, -200.0], [-200.0, 0.0]])  # float32: exp(-200) is 0
    seen = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    lost = opt_einsum.contract("ra,ab,rb->r", seen[0], wide, seen[1], backend="pyro.ops.einsum.torch_log")
    assert lost.item() == -math.inf
    chain = MarkovChain(torch.zeros(2), wide[None])
    ours = chain.marginal(torch.tensor([True, True])).log_prob(torch.tensor([0.0, 1.0]))
    assert ours.item() == pytest.approx(-200 - math.log(2))


@pytest.mark.parametrize("joint", [ChowLiuTree, MarkovChain], ids=lambda c: c.__name__)
@pytest.mark.parametrize("K", [2, 17])
def test_ten_classes_of_500_patterns_take_less_than_a_second(joint, K):
    """CPU time; measured 0.02 to 0.06 s with the gradient (benchmarks/elimination.py)."""
    generator = torch.Generator().manual_seed(0)
    x, visible = (t[:, None] for t in rows_and_patterns([K] * 64, 500, generator))
    y = torch.arange(500) % 10
    fitted = joint.from_data(x[:, 0], num_states=K, weights=(y == torch.arange(10)[:, None]).float())
    tensors = {name: t.requires_grad_() for name, t in fitted.tensors.items()}
    start = time.process_time()
    answer = fitted.with_tensors(tensors).marginal(visible).log_prob(x)
    torch.autograd.grad(answer.sum(), list(tensors.values()))
    assert time.process_time() - start < 1
    assert answer.shape == (500, 10)


def test_rows_in_turn_equal_rows_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    chain = MarkovChain(torch.randn(4, 3), torch.randn(4, 5, 3, 3))
    x, visible = rows_and_patterns([3] * 6, 50, generator)
    whole = chain.marginal(visible[:, None]).log_prob(x[:, None])
    modes = chain.given(x[:, None], visible[:, None]).mode
    monkeypatch.setattr("pyro_ar.budget.TURN", 200)
    torch.testing.assert_close(chain.marginal(visible[:, None]).log_prob(x[:, None]), whole)
    assert torch.equal(chain.given(x[:, None], visible[:, None]).mode, modes)


def test_networks_too_dense_are_refused_before_any_work():
    n = 40
    parents = [()] * n + [(i, j) for i in range(n) for j in range(i)]  # every pair has a common child
    tables = [torch.zeros(*[2] * len(p), 2) for p in parents]
    net = BayesNet(parents, tables)
    assert net.log_prob(torch.zeros(len(parents))).item() == pytest.approx(len(parents) * math.log(0.5))
    with pytest.raises(IntractableError, match="too densely connected"):
        net.marginal(torch.ones(len(parents), dtype=torch.bool))
    with pytest.raises(IntractableError, match="too densely connected"):
        net.given(torch.zeros(len(parents)), torch.ones(len(parents), dtype=torch.bool))


def test_what_is_stored_under_hidden_cells_is_never_read():
    parents, tables, sizes, generator = random_net(7)
    tables = [t.requires_grad_() for t in tables]
    net = BayesNet(parents, tables)
    x, visible = rows_and_patterns(sizes, 6, generator)
    x = x.double()
    first = net.marginal(visible).log_prob(x)
    second = net.marginal(visible).log_prob(x.masked_fill(~visible, math.nan))
    assert torch.equal(first, second)
    for a, b in zip(*(torch.autograd.grad(t.sum(), tables) for t in (first, second)), strict=True):
        assert torch.equal(a, b)
