"""The full table against listing in plain Python."""

import itertools
import math
import random

import pytest
import torch

from listing import agreeing, dirichlet_predictive, log_softmax, marginal_by_listing, mode_by_listing, table_by_listing

from pyro_ar.tables import BayesNet, FullTable

SIZES = [(2,), (2, 2, 2), (3, 1, 2), (2, 4, 3, 2), (256,)]


def by_hand(logits):
    flat = log_softmax(logits.detach().flatten().tolist())
    sizes = tuple(logits.shape)

    def log_p(state):
        place = 0
        for s, k in zip(state, sizes, strict=True):
            place = place * k + s
        return flat[place]

    return log_p


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_answer_is_that_of_listing(sizes):
    torch.manual_seed(0)
    logits = torch.randn(sizes, dtype=torch.float64)
    joint, table = FullTable(logits), table_by_listing(by_hand(logits), sizes)
    x = torch.tensor(list(table))
    torch.testing.assert_close(joint.log_prob(x), torch.tensor(list(table.values()), dtype=torch.float64))
    visible = torch.rand(len(x), len(sizes)) < 0.5
    answer, given = joint.marginal(visible).log_prob(x), joint.given(x.double(), visible)
    for i, (row, seen) in enumerate(zip(x.tolist(), visible.tolist(), strict=True)):
        assert answer[i].item() == pytest.approx(marginal_by_listing(table, row, seen), abs=1e-12)
        assert tuple(given.mode[i].long().tolist()) in mode_by_listing(table, row, seen)
    torch.testing.assert_close(given.log_prob(x.double()), joint.log_prob(x) - answer)


@pytest.mark.parametrize("sizes", SIZES[:-1], ids=str)
def test_conditionals_are_ratios_of_marginals(sizes):
    torch.manual_seed(1)
    logits = torch.randn(sizes, dtype=torch.float64)
    table = table_by_listing(by_hand(logits), sizes)
    terms = FullTable(logits).conditional_log_prob(torch.tensor(list(table)))
    for row, found in zip(table, terms.tolist(), strict=True):
        prefix = [marginal_by_listing(table, row, [j < i for j in range(len(sizes))]) for i in range(len(sizes) + 1)]
        assert found == pytest.approx([b - a for a, b in itertools.pairwise(prefix)], abs=1e-12)


def test_batch_and_extra_left_dimensions():
    torch.manual_seed(2)
    logits = torch.randn(4, 1, 2, 3, dtype=torch.float64)  # batch (4, 1), event (2, 3)
    joint = FullTable(logits, num_states=(2, 3))
    x = torch.stack([torch.randint(2, (5, 1, 6)), torch.randint(3, (5, 1, 6))], -1)
    visible = torch.rand(6, 2) < 0.5
    answer = joint.marginal(visible).log_prob(x)
    assert joint.log_prob(x).shape == answer.shape == (5, 4, 6)
    for b in range(4):
        table = table_by_listing(by_hand(logits[b, 0]), (2, 3))
        for s in range(5):
            for r in range(6):
                row = x[s, 0, r].tolist()
                assert joint.log_prob(x)[s, b, r].item() == pytest.approx(table[tuple(row)])
                assert answer[s, b, r].item() == pytest.approx(marginal_by_listing(table, row, visible[r].tolist()))


def test_forbidden_states_stay_forbidden():
    logits = torch.tensor([[0.0, -math.inf], [1.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    joint = FullTable(logits)
    x = torch.tensor([[0, 0], [0, 1], [1, 0]])
    assert joint.log_prob(x).tolist() == pytest.approx([-math.log(1 + math.e), -math.inf, 1 - math.log(1 + math.e)])
    assert bool((joint.sample((200,))[:, 1] == 0).all())
    total = joint.conditional_log_prob(x)
    assert not bool(total.isnan().any())
    total[total > -math.inf].sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_after_an_impossible_prefix_nothing_is_nan():
    logits = torch.tensor([[0.0, 1.0], [-math.inf, -math.inf]], requires_grad=True)
    terms = FullTable(logits).conditional_log_prob(torch.tensor([[0, 1], [1, 1]]))
    assert terms.sum(-1).tolist() == pytest.approx([FullTable(logits).log_prob(torch.tensor([0, 1])).item(), -math.inf])
    terms[0].sum().backward()
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("scale", [30, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits(scale, dtype):
    torch.manual_seed(3)
    logits = (scale * torch.randn(4, 4, 4, dtype=dtype)).requires_grad_()
    table = table_by_listing(by_hand(logits), (4, 4, 4))
    x = torch.randint(4, (30, 3))
    visible = torch.rand(30, 3) < 0.5
    answer = FullTable(logits).marginal(visible).log_prob(x)
    expected = [marginal_by_listing(table, r, v) for r, v in zip(x.tolist(), visible.tolist(), strict=True)]
    assert answer.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    (gradient,) = torch.autograd.grad(answer.sum(), logits)
    by_cell = dict.fromkeys(table, 0.0)  # sum over the rows of p(state | visible) - p(state)
    for row, seen, total in zip(x.tolist(), visible.tolist(), expected, strict=True):
        for state in agreeing(table, row, seen):
            by_cell[state] += math.exp(table[state] - total)
        for state in table:
            by_cell[state] -= math.exp(table[state])
    torch.testing.assert_close(gradient.double().flatten(), torch.tensor(list(by_cell.values()), dtype=torch.float64),
                               rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-9)


def test_parameters_are_counted_without_a_table():
    assert FullTable.count_parameters([256] * 3) == 256**3 - 1
    assert FullTable.count_parameters([2] * 784) == 2**784 - 1
    assert FullTable(torch.zeros(2, 3, 4)).num_parameters == 23


@pytest.mark.parametrize("seed", range(6))
def test_evidence_is_that_of_the_complete_network_under_one_sample_size(seed):
    pick = random.Random(seed)
    sizes = [pick.choice([2, 3, 4]) for _ in range(pick.randint(1, 4))]
    n, strength = len(sizes), pick.uniform(0.5, 20)
    x = torch.tensor([[pick.randrange(k) for k in sizes] for _ in range(25)])
    by_table = FullTable.log_evidence(x, equivalent_sample_size=strength, num_states=sizes)
    cells = math.prod(sizes)
    by_hand = dirichlet_predictive([(tuple(r), cells) for r in x.tolist()], strength / cells)
    assert by_table.item() == pytest.approx(by_hand, abs=1e-9)
    order = pick.sample(range(n), n)
    parents = [()] * n
    for place, v in enumerate(order):
        parents[v] = tuple(order[:place])
    complete = BayesNet.log_evidence(x, equivalent_sample_size=strength, num_states=sizes, parents=parents)
    assert complete.item() == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: FullTable([[0.0, 1.0]]), "logits must be a floating tensor"),
    (lambda: FullTable(torch.zeros(2, 2, dtype=torch.long)), "logits must be a floating tensor; got a int64 tensor"),
    (lambda: FullTable(torch.zeros(())), "logits must end in the numbers of states"),
    (lambda: FullTable(torch.zeros(2, 3), num_states=()), "logits must end in the numbers of states"),
    (lambda: FullTable(torch.zeros(2, 3), num_states=(3, 2)), r"must end in the numbers of states \(3, 2\); got .*\(2, 3\)"),
    (lambda: FullTable(torch.zeros(3), num_states=(2, 3)), r"must end in the numbers of states \(2, 3\)"),
    (lambda: FullTable(torch.tensor([0.0, math.nan])), "logits"),
], ids=range(7))
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
