"""Markov chains of any order against plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from listing import dirichlet_predictive, log_softmax, marginal_by_listing, mode_by_listing, table_by_listing

from pyro_ar.comparison import TableModel, to_inference_data
from pyro_ar.inference.divergence import closest_table, kl_divergence
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
    (lambda: MarkovChain(None, torch.zeros(3, 2, 2)), "initial_logits may be left out where one transition table"),
    (lambda: MarkovChain(torch.zeros(2), [torch.zeros(2, 2)], num_variables=3), "with num_variables transition_logits must be one table"),
    (lambda: MarkovChain(torch.zeros(2), torch.zeros(2, 2), num_variables=1), "more than the order 1; got 1"),
    (lambda: MarkovChain(torch.zeros(2), torch.zeros(2, 3), num_variables=4), r"must end in \(3, 3\), the same states"),
    (lambda: MarkovChain(torch.zeros(2), torch.zeros(3, 3), num_variables=4), r"initial_logits must end in \(3,\)"),
    (lambda: MarkovChain(None, torch.eye(2).log(), num_variables=4), "all of whose states reach each other"),
    (lambda: MarkovChain(None, torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log(), num_variables=4), "all of whose states reach each other"),
    (lambda: MarkovChain(None, torch.zeros(33, 33, 33), 2, num_variables=4), "at most 1024 states of 2 variables"),
    (lambda: MarkovChain.from_data(torch.zeros(5, 2), order=2, stationary=True), "more variables than the order"),
], ids=range(26))
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# One transition table for all places.


def test_one_table_is_the_same_as_many_equal_ones():
    torch.manual_seed(4)
    for order, n in ((1, 5), (2, 6), (3, 5)):
        initial, table = torch.randn(2, *(3,) * order), torch.randn(2, *(3,) * (order + 1))
        shared = MarkovChain(initial, table, order, num_variables=n)
        spread = MarkovChain(initial, torch.stack([table] * (n - order), 1), order)
        x, visible = torch.randint(3, (20, 1, n)), torch.rand(20, 1, n) < 0.5
        torch.testing.assert_close(shared.log_prob(x), spread.log_prob(x))
        torch.testing.assert_close(shared.marginal(visible).log_prob(x), spread.marginal(visible).log_prob(x))
        torch.testing.assert_close(shared.conditional_log_prob(x), spread.conditional_log_prob(x))
        assert shared.num_states == spread.num_states
        assert shared.num_parameters == 3**order - 1 + 3**order * 2
        assert MarkovChain.count_parameters([3] * n, order=order, stationary=True) == shared.num_parameters
        again = shared.with_tensors(shared.tensors)
        assert (again.num_variables, again.batch_shape) == (n, (2,))


def stationary_by_numpy(table, order):
    """The eigenvector of the matrix between tuples, in float64."""
    size = len(table)
    tuples = list(itertools.product(range(size), repeat=order))
    matrix = np.zeros((len(tuples), len(tuples)))
    for i, before in enumerate(tuples):
        row = table
        for s in before:
            row = row[s]
        for s, p in enumerate(np.exp(log_softmax(row.tolist()))):
            matrix[i, tuples.index((*before[1:], s))] += p
    values, vectors = np.linalg.eig(matrix.T)
    vector = np.real(vectors[:, np.argmin(abs(values - 1))])
    return (vector / vector.sum()).reshape((size,) * order)


@pytest.mark.parametrize(("order", "size"), [(1, 2), (1, 5), (2, 3), (3, 2)])
def test_the_stationary_start_is_the_eigenvector(order, size):
    """By another way of computing it; and every window of a stationary chain has one distribution."""
    torch.manual_seed(5)
    n = order + 4
    tables = 2 * torch.randn(3, *(size,) * (order + 1), dtype=torch.float64)
    chain = MarkovChain(None, tables, order, num_variables=n)
    assert chain.num_parameters == size**order * (size - 1)
    tuples = torch.tensor(list(itertools.product(range(size), repeat=order)), dtype=torch.float64)
    for start in range(n - order + 1):
        seen = torch.zeros(n, dtype=torch.bool)
        seen[start:start + order] = True
        x = torch.zeros(len(tuples), 1, n, dtype=torch.float64)
        x[:, 0, start:start + order] = tuples
        found = chain.marginal(seen).log_prob(x).exp()
        for b in range(3):
            assert found[:, b].numpy() == pytest.approx(stationary_by_numpy(tables[b], order).ravel(), abs=1e-10)
    assert torch.autograd.gradcheck(lambda t: MarkovChain(None, t, order, num_variables=n).log_prob(torch.zeros(n)), tables.requires_grad_())


def test_small_stationary_shares_keep_their_digits():
    """A chain of two states is stationary at (b, a) / (a + b), whatever the size of a and b."""
    for a, b in ((1e-12, 0.3), (1e-30, 1e-20)):
        table = torch.tensor([[1 - a, a], [b, 1 - b]], dtype=torch.float64)
        chain = MarkovChain(None, table.log(), num_variables=3)
        assert chain.marginal(torch.tensor([True, False, False])).log_prob(torch.ones(3)).item() == pytest.approx(math.log(a / (a + b)), rel=1e-12)


def cut_into_steps(x, order):
    """The first tuple of each row, and every step of every row: (states before, state after)."""
    rows = x.tolist()
    return [tuple(row[:order]) for row in rows], [(tuple(row[i - order:i]), row[i]) for row in rows for i in range(order, len(row))]


@pytest.mark.parametrize("order", [1, 2])
def test_fit_evidence_and_posterior_of_one_table(order):
    """Against counts step by step; the states are those of the largest variable."""
    torch.manual_seed(6)
    x = torch.stack([torch.randint(k, (15,)) for k in (2, 3, 2, 2, 3)], -1)
    first, steps = cut_into_steps(x, order)
    joint = MarkovChain.from_data(x, order=order, stationary=True, pseudocount=0.5)
    assert joint.num_states == (3,) * 5
    assert joint.num_variables == 5
    for row in x[:5].tolist():
        wanted = math.log((first.count(tuple(row[:order])) + 0.5) / (15 + 0.5 * 3**order))
        for i in range(order, 5):
            before = tuple(row[i - order:i])
            leaving = sum(b == before for b, _ in steps)
            wanted += math.log((steps.count((before, row[i])) + 0.5) / (leaving + 1.5))
        assert joint.log_prob(torch.tensor(row)).item() == pytest.approx(wanted, abs=1e-5)
    for prior, alphas in (({"concentration": 0.7}, (0.7, 0.7)), ({"equivalent_sample_size": 6.0}, (6 / 3**order, 6 / 3**(order + 1)))):
        by_parents = {}
        for before, after in steps:
            by_parents.setdefault(before, []).append((after, 3))
        total = dirichlet_predictive([(t, 3**order) for t in first], alphas[0])
        total += sum(dirichlet_predictive(rows, alphas[1]) for rows in by_parents.values())
        assert MarkovChain.log_evidence(x, order=order, stationary=True, **prior).item() == pytest.approx(total, abs=1e-9)
        model = TableModel(MarkovChain, structure={"order": order, "stationary": True}, **({"concentration": 0.7} if "concentration" in prior else
                                                                                            {"equivalent_sample_size": 6.0}))
        scores = model.with_states((3,) * 5).leave_one_out(x)
        without = model.with_states((3,) * 5).log_evidence(x[1:])
        assert scores[0].item() == pytest.approx(total - without.item(), abs=1e-9)
        posterior = MarkovChain.posterior(x, order=order, stationary=True, **prior)
        before = steps[0][0]
        count = [steps.count((before, s)) + alphas[1] for s in range(3)]
        found = posterior.predictive().transition_logits.softmax(-1)[before]
        assert found.tolist() == pytest.approx([c / sum(count) for c in count], abs=1e-6)
        drawn = posterior.sample((4,))
        assert (drawn.batch_shape, drawn.transition_logits.shape, drawn.num_variables) == ((4,), (4, *(3,) * (order + 1)), 5)


def test_draws_of_one_table_are_scored_on_their_rows_only():
    x = torch.randint(0, 2, (30, 4))
    posterior = MarkovChain.posterior(x, stationary=True, equivalent_sample_size=1.0)
    assert to_inference_data(posterior, x, num_draws=20) is not None
    with pytest.raises(ValueError, match="rows it was conditioned on"):
        to_inference_data(posterior, 1 - x.sort(1)[0], num_draws=20)


def test_hidden_cells_of_one_table_are_summed_out():
    """EM climbs, ends where no nearby table is better, and with nothing hidden is the closed form."""
    torch.manual_seed(7)
    x = MarkovChain(torch.zeros(2), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), num_variables=5).sample((60,)).double()
    visible = torch.rand(60, 5) < 0.7
    scores = []
    for steps in (0, 1, 3, 300):
        joint = MarkovChain.from_data(x, visible=visible, stationary=True, pseudocount=0.0, em_steps=steps)
        scores.append(joint.marginal(visible).log_prob(x).sum().item())
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 1e-4
    tensors = {name: t.log_softmax(-1).requires_grad_() for name, t in joint.tensors.items()}
    total = joint.with_tensors(tensors).marginal(visible).log_prob(x).sum()
    assert max(g.abs().max().item() for g in torch.autograd.grad(total, list(tensors.values()))) < 0.05
    whole = MarkovChain.from_data(x, visible=torch.ones(60, 5, dtype=torch.bool), stationary=True)
    torch.testing.assert_close(whole.log_prob(x), MarkovChain.from_data(x, stationary=True).log_prob(x))
    weights = torch.rand(3, 60, dtype=torch.float64)
    batch = MarkovChain.from_data(x, visible=visible, weights=weights, stationary=True, em_steps=5)
    alone = MarkovChain.from_data(x, visible=visible, weights=weights[1], stationary=True, em_steps=5)
    torch.testing.assert_close(batch.log_prob(x[:, None])[:, 1], alone.log_prob(x))


def test_the_nearest_chain_of_one_table():
    """KL to the closest one is no larger than to chains near it, and zero for a chain of one table."""
    truth = MarkovChain(torch.randn(2).double(), torch.randn(4, 2, 2).double())
    nearest = closest_table(truth, MarkovChain, stationary=True)
    best = kl_divergence(truth, nearest)
    for _ in range(5):
        other = nearest.with_tensors({name: t + 0.05 * torch.randn_like(t) for name, t in nearest.tensors.items()})
        assert kl_divergence(truth, other) >= best
    same = MarkovChain(torch.randn(2).double(), torch.randn(2, 2).double(), num_variables=5)
    assert kl_divergence(same, closest_table(same, MarkovChain, stationary=True)).item() == pytest.approx(0, abs=1e-12)
