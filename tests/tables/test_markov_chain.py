"""Markov chains of any order against plain loops."""

import itertools
import math

import pytest
import torch

from listing import dirichlet_predictive, log_softmax, marginal_by_listing, mode_by_listing, table_by_listing

from pyro_ar.tables import BayesNet, FullTable, FullyIndependent, MarkovChain


def by_hand(initial, transitions, order):
    values = log_softmax(initial.flatten().tolist())
    first = dict(zip(itertools.product(*map(range, initial.shape)), values, strict=True))

    def log_p(state):
        total = first[tuple(state[:order])]
        for i, table in enumerate(transitions):
            row = table
            for s in state[i:i + order]:
                row = row[s]
            total += log_softmax(row.tolist())[state[i + order]]
        return total

    return log_p


def chain(order, sizes, stacked, batch=()):
    initial = torch.randn(*batch, *sizes[:order], dtype=torch.float64)
    rest = [torch.randn(*batch, *sizes[i:i + order + 1], dtype=torch.float64) for i in range(len(sizes) - order)]
    return initial, torch.stack(rest, len(batch)) if stacked else rest


CASES = [(1, (2,) * 6, True), (1, (3, 2, 5, 1, 4), False), (2, (3,) * 5, True), (2, (2, 3, 1, 4, 2), False),
         (3, (2,) * 7, True), (4, (2, 3, 2, 2), False), (1, (5,), False)]


@pytest.mark.parametrize(("order", "sizes", "stacked"), CASES, ids=str)
def test_every_answer_is_that_of_listing(order, sizes, stacked):
    torch.manual_seed(0)
    initial, rest = chain(order, sizes, stacked)
    joint = MarkovChain(initial, rest, order)
    assert joint.num_states == sizes
    table = table_by_listing(by_hand(initial, rest, order), sizes)
    x = torch.tensor(list(table))
    torch.testing.assert_close(joint.log_prob(x), torch.tensor(list(table.values()), dtype=torch.float64))
    x = x[torch.randint(len(x), (30,))]
    visible = torch.rand(30, len(sizes)) < 0.5
    answer, given = joint.marginal(visible).log_prob(x), joint.given(x.double(), visible)
    terms = joint.conditional_log_prob(x)
    for i, (row, seen) in enumerate(zip(x.tolist(), visible.tolist(), strict=True)):
        assert answer[i].item() == pytest.approx(marginal_by_listing(table, row, seen), abs=1e-12)
        assert tuple(given.mode[i].long().tolist()) in mode_by_listing(table, row, seen)
        prefix = [marginal_by_listing(table, row, [j < k for j in range(len(sizes))]) for k in range(len(sizes) + 1)]
        assert terms[i].tolist() == pytest.approx([b - a for a, b in itertools.pairwise(prefix)], abs=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_batch_and_extra_left_dimensions(order):
    torch.manual_seed(1)
    initial, rest = chain(order, (3,) * 4, True, batch=(2, 1))
    joint = MarkovChain(initial, rest, order)
    x, visible = torch.randint(3, (3, 1, 5, 4)), torch.rand(3, 1, 5, 4) < 0.5
    answer, joint_answer = joint.marginal(visible).log_prob(x), joint.log_prob(x)
    assert answer.shape == joint_answer.shape == (3, 2, 5)
    for b in range(2):
        table = table_by_listing(by_hand(initial[b, 0], rest[b, 0], order), (3,) * 4)
        for s in range(3):
            for r in range(5):
                row, seen = x[s, 0, r].tolist(), visible[s, 0, r].tolist()
                assert joint_answer[s, b, r].item() == pytest.approx(table[tuple(row)])
                assert answer[s, b, r].item() == pytest.approx(marginal_by_listing(table, row, seen), abs=1e-12)


def test_states_never_seen_and_forbidden():
    x = torch.tensor([[0, 0, 1], [0, 1, 1], [0, 0, 1]])
    joint = MarkovChain.from_data(x, pseudocount=0, num_states=3)
    assert joint.log_prob(torch.tensor([0, 0, 1])).item() == pytest.approx(math.log(2 / 3))
    assert joint.log_prob(torch.tensor([1, 0, 1])).item() == -math.inf
    # State 2 was never left: its conditional is uniform, and not NaN.
    assert joint.conditional_log_prob(torch.tensor([0, 2, 0]))[2].item() == pytest.approx(-math.log(3))
    visible = torch.tensor([[False, True, False], [False, False, True], [True, False, False]])
    rows = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert joint.marginal(visible).log_prob(rows).tolist() == pytest.approx([-math.inf, 0.0, 0.0], abs=1e-6)


def test_a_chain_of_full_order_is_the_full_table_and_one_of_lists_the_net():
    torch.manual_seed(2)
    logits = torch.randn(2, 3, 2)
    x = torch.stack([torch.randint(k, (20,)) for k in (2, 3, 2)], -1)
    torch.testing.assert_close(MarkovChain(logits, [], 3).log_prob(x), FullTable(logits).log_prob(x))
    initial, rest = chain(1, (2, 3, 2), False)
    net = BayesNet([(), (0,), (1,)], [initial, *rest])
    torch.testing.assert_close(MarkovChain(initial, rest).log_prob(x), net.log_prob(x))


def test_parameters_follow_the_textbook():
    for n in (1, 2, 5, 784):
        assert MarkovChain.count_parameters([2] * n) == 2 * n - 1
    for k in (1, 2, 3, 8):
        assert MarkovChain.count_parameters([2] * 64, order=k) == 2**k - 1 + (64 - k) * 2**k
    assert MarkovChain.count_parameters([2] * 784, order=100) == 2**100 - 1 + 684 * 2**100  # allocates nothing
    assert MarkovChain.count_parameters([2] * 6, order=6) == FullTable.count_parameters([2] * 6)
    assert MarkovChain(torch.zeros(3, 3), torch.zeros(4, 3, 3, 3), order=2).num_parameters == 8 + 4 * 9 * 2
    assert FullyIndependent.count_parameters([2] * 784) == 784


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("prior", [{"concentration": 0.7}, {"equivalent_sample_size": 5.0}], ids=str)
def test_evidence_is_the_product_of_predictive_probabilities(order, prior):
    torch.manual_seed(3)
    sizes = (2, 3, 2, 4)
    x = torch.stack([torch.randint(k, (25,)) for k in sizes], -1)
    total = 0.0
    blocks = [((), tuple(range(order)))] + [(tuple(range(i - order, i)), (i,)) for i in range(order, 4)]
    for parents, children in blocks:
        inside, outside = (math.prod(sizes[v] for v in side) for side in (children, parents))
        alpha = prior.get("concentration", prior.get("equivalent_sample_size", 0) / (inside * outside))
        by_parents = {}
        for row in x.tolist():
            cell = tuple(row[v] for v in children)
            by_parents.setdefault(tuple(row[v] for v in parents), []).append((cell, inside))
        total += sum(dirichlet_predictive(rows, alpha) for rows in by_parents.values())
    found = MarkovChain.log_evidence(x, order=order, num_states=sizes, **prior)
    assert found.item() == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: MarkovChain(torch.zeros(2), torch.zeros(3, 2, 2), order=0), "order must be a whole number of at least 1; got 0"),
    (lambda: MarkovChain(torch.zeros(2), torch.zeros(3, 2, 2), order=1.5), "order must be a whole number"),
    (lambda: MarkovChain(torch.zeros(2), torch.zeros(3, 2, 3)), r"transition 1 must have the states \(3,\)"),
    (lambda: MarkovChain(torch.zeros(3), torch.zeros(3, 2, 2)), r"transition 0 must have the states \(3,\) of the 1"),
    (lambda: MarkovChain(torch.zeros(2), torch.zeros(2, 2)), "transition_logits must be a floating tensor of at least 3"),
    (lambda: MarkovChain(torch.zeros(2), torch.zeros(3, 2, 2), 2), "initial_logits must be a floating tensor of at least 2"),
    (lambda: MarkovChain(torch.zeros(2).long(), torch.zeros(3, 2, 2)), "initial_logits must be a floating tensor"),
    (lambda: MarkovChain([0.0, 0.0], torch.zeros(3, 2, 2)), "initial_logits must be a floating tensor"),
    (lambda: MarkovChain(torch.zeros(2), [torch.zeros(2)]), "transition_logits.0 must be a floating tensor of at least 2"),
    (lambda: MarkovChain(torch.zeros(2), [torch.zeros(2, 3), torch.zeros(2, 2)]), r"transition 1 must have the states \(3,\)"),
    (lambda: MarkovChain(torch.zeros(2), torch.full((1, 2, 2), math.nan)), "transition_logits must not hold NaN"),
    (lambda: MarkovChain(torch.zeros(4, 2), torch.zeros(3, 1, 2, 2)), "batch dimensions of the tensors must broadcast"),
    (lambda: MarkovChain(torch.zeros(2), torch.full((1, 2, 2), -math.inf)), "needs a state of finite logit"),
    (lambda: MarkovChain.from_data(torch.zeros(5, 3), order=4), "order must be between 1 and the 3 variables; got 4"),
    (lambda: MarkovChain.from_data(torch.zeros(5, 3), order=0), "order must be between 1 and"),
    (lambda: MarkovChain.log_evidence(torch.zeros(5, 3), order=4, concentration=1.0), "order must be between 1 and"),
    (lambda: MarkovChain.count_parameters([2, 2], order=3), "order must be between 1 and the 2 variables"),
], ids=range(17))
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
