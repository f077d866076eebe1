"""Counting against plain loops, and every refusal of data, of priors and of structure."""

import collections
import math

import pytest
import torch

from listing import dirichlet_predictive

from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain
from pyro_ar.tables.counts import Block, block_counts, check_data, concentration_of, count_block, log_evidence_of

CLASSES = [FullTable, FullyIndependent, MarkovChain, ChowLiuTree]
DATA = torch.tensor([[0, 1, 2], [1, 1, 0], [0, 0, 2], [0, 1, 2]])


@pytest.mark.parametrize("block", [Block((), (0,)), Block((2,), (0,)), Block((1, 0), (2,)), Block((), (2, 0, 1)), Block((1,), (2, 0))])
def test_counts_are_those_of_a_counter(block):
    generator = torch.Generator().manual_seed(0)
    sizes = (2, 3, 4)
    x = torch.stack([torch.randint(k, (50,), generator=generator) for k in sizes], -1)
    scope = (*block.parents, *block.children)
    seen = collections.Counter(tuple(row[v] for v in scope) for row in x.tolist())
    counts = block_counts(block, x, sizes)
    assert counts.shape == tuple(sizes[v] for v in scope)
    assert {tuple(i.tolist()): int(counts[tuple(i)]) for i in counts.nonzero()} == dict(seen)
    weights = torch.rand(2, 3, 50, generator=generator)
    weighted = block_counts(block, x, sizes, weights)
    by_hand = torch.zeros(2, 3, *counts.shape, dtype=torch.float64)
    for r, row in enumerate(x.tolist()):
        by_hand[(..., *(row[v] for v in scope))] += weights[..., r].double()
    torch.testing.assert_close(weighted, by_hand)


def test_evidence_has_a_batch_as_its_counts_have():
    generator = torch.Generator().manual_seed(1)
    x = torch.stack([torch.randint(k, (30,), generator=generator) for k in (2, 3)], -1)
    y = torch.arange(30) % 3
    counts = block_counts(Block((0,), (1,)), x, (2, 3), (y == torch.arange(3)[:, None]).double())
    found = log_evidence_of(Block((0,), (1,)), counts, 0.7)
    for c in range(3):
        by_hand = sum(dirichlet_predictive([(b, 3) for a, b in x[y == c].tolist() if a == s], 0.7) for s in (0, 1))
        assert found[c].item() == pytest.approx(by_hand, abs=1e-10)


def test_evidence_of_many_rows_keeps_its_digits():
    """A million rows of one column: lgamma differences of about 1e7, against exact sums of logs."""
    ones, N = 300_000, 1_000_000
    x = torch.zeros(N, 1, dtype=torch.long)
    x[:ones] = 1
    exact = math.fsum([math.fsum(map(math.log, range(1, ones + 1))), math.fsum(map(math.log, range(1, N - ones + 1))),
                       -math.fsum(map(math.log, range(1, N + 2)))])
    found = FullyIndependent.log_evidence(x, concentration=1.0)
    assert found.item() == pytest.approx(exact, abs=1e-6)


def test_concentration_spreads_the_sample_size():
    block = Block((0, 1), (2,))
    assert concentration_of(block, (2, 3, 4), 0.3, None) == 0.3
    assert concentration_of(block, (2, 3, 4), None, 12.0) == 0.5
    assert count_block(block, (2, 3, 4)) == 18
    assert count_block(Block((), (0, 1, 2)), (256, 256, 256)) == 256**3 - 1


def test_states_are_found_or_told():
    assert check_data(DATA, None)[1] == (2, 2, 3)
    assert check_data(DATA.float(), 5)[1] == (5, 5, 5)
    assert check_data(torch.zeros(1, 2), None)[1] == (2, 2)  # a constant column is still a binary variable
    states, _ = check_data(DATA.to(torch.uint8), None)
    assert states.dtype == torch.int64


BAD_DATA = [
    (torch.zeros(3), {}, r"data must be rows of shape \(N, n\); got a float32 tensor of shape \(3,\)"),
    (torch.zeros(0, 3), {}, r"data must be rows of shape \(N, n\)"),
    (torch.zeros(3, 0), {}, r"data must be rows of shape \(N, n\)"),
    (torch.zeros(2, 3, 4), {}, r"data must be rows of shape \(N, n\)"),
    ([[0, 1]], {}, r"data must be rows of shape \(N, n\)"),
    (torch.tensor([[0.5, 1.0]]), {}, "data must be whole numbers"),
    (torch.tensor([[math.inf, 1.0]]), {}, "data must be whole numbers|states must be 0 or more"),
    (torch.tensor([[0, -1]]), {}, "states must be 0 or more; got -1"),
    (torch.tensor([[0, 1], [0, 3]]), {"num_states": 3}, "column 1 must hold the states 0 to 2; got 3, .*row 1"),
    (torch.tensor([[0, 1]]), {"num_states": [2, 2, 2]}, "num_states must be one number or 2 numbers"),
    (torch.tensor([[0, 1]]), {"num_states": [2, 0]}, "at least one state"),
    (torch.tensor([[0, 1]]), {"num_states": 0}, "at least one state"),
    (torch.tensor([[0, 1]]), {"num_states": -2}, "at least one state"),
]


@pytest.mark.parametrize("joint", CLASSES, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("x", "options", "match"), BAD_DATA, ids=range(len(BAD_DATA)))
def test_bad_data_are_named_by_every_closed_form(joint, x, options, match):
    with pytest.raises(ValueError, match=match):
        joint.from_data(x, **options)
    with pytest.raises(ValueError, match=match):
        joint.log_evidence(x, equivalent_sample_size=1.0, **options)
    with pytest.raises(ValueError, match=match):
        joint.posterior(x, equivalent_sample_size=1.0, **options)


@pytest.mark.parametrize("joint", CLASSES, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("options", "match"), [
    ({"pseudocount": -0.1}, "pseudocount must be 0 or more; got -0.1"),
    ({"pseudocount": math.nan}, "pseudocount must be 0 or more"),
    ({"pseudocount": math.inf}, "pseudocount must be 0 or more"),
    ({"weights": torch.ones(5)}, r"weights must end in \(4,\); got .*\(5,\)"),
    ({"weights": torch.ones(())}, r"weights must end in \(4,\)"),
    ({"weights": torch.ones(4, 3)}, r"weights must end in \(4,\)"),
    ({"weights": -torch.ones(4)}, "weights must be 0 or more, finite, and not NaN; got -1.0"),
    ({"weights": torch.full((4,), math.nan)}, "weights must be 0 or more, finite, and not NaN"),
    ({"weights": torch.full((4,), math.inf)}, "weights must be 0 or more, finite"),
])
def test_bad_fits_are_named(joint, options, match):
    with pytest.raises(ValueError, match=match):
        joint.from_data(DATA, **options)


@pytest.mark.parametrize("joint", [FullTable, FullyIndependent, MarkovChain], ids=lambda c: c.__name__)
@pytest.mark.parametrize(("options", "match"), [
    ({}, "give either concentration"),
    ({"concentration": 1.0, "equivalent_sample_size": 1.0}, "give either concentration .* got 1.0, 1.0"),
    ({"concentration": 0.0}, "needs a positive number; got 0.0"),
    ({"concentration": -1.0}, "needs a positive number"),
    ({"concentration": math.nan}, "needs a positive number"),
    ({"equivalent_sample_size": math.inf}, "needs a positive number"),
])
def test_bad_priors_are_named(joint, options, match):
    with pytest.raises(ValueError, match=match):
        joint.log_evidence(DATA, **options)
    with pytest.raises(ValueError, match=match):
        joint.posterior(DATA, **options)


@pytest.mark.parametrize("joint", CLASSES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.float64])
def test_the_dtype_of_the_fit(joint, dtype):
    fitted = joint.from_data(DATA.to(dtype))
    assert fitted.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert bool(fitted.log_prob(DATA).isfinite().all())


@pytest.mark.parametrize("joint", CLASSES, ids=lambda c: c.__name__)
def test_maximum_likelihood_beats_its_neighbours(joint):
    generator = torch.Generator().manual_seed(3)
    x = torch.stack([torch.randint(k, (200,), generator=generator) for k in (2, 3, 2)], -1)
    fitted = joint.from_data(x.double(), pseudocount=0)
    best = fitted.log_prob(x).sum()
    for _ in range(20):
        moved = {name: t + 0.1 * torch.randn(t.shape, generator=generator, dtype=t.dtype) for name, t in fitted.tensors.items()}
        assert fitted.with_tensors(moved).log_prob(x).sum() <= best


def test_an_unseen_class_gets_uniform_tables():
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    for joint in CLASSES:
        fitted = joint.from_data(DATA, weights=weights, pseudocount=0, num_states=3)
        assert fitted.log_prob(torch.tensor([0, 1, 2]))[1].item() == pytest.approx(-3 * math.log(3), abs=1e-5)
    net = BayesNet.from_data(DATA, weights=weights, pseudocount=0, num_states=3, parents=[(), (0,), (0, 1)])
    assert net.log_prob(torch.tensor([0, 1, 2]))[1].item() == pytest.approx(-3 * math.log(3), abs=1e-5)


@pytest.mark.parametrize("joint", [FullTable, FullyIndependent, MarkovChain, ChowLiuTree, BayesNet], ids=lambda joint: joint.__name__)
@pytest.mark.parametrize("state", [10**9, 2 * 10**8, 10**6], ids=str)
def test_a_huge_state_is_refused_before_memory_is_asked_for(joint, state):
    """In a column of its own where one table is too large, in 600 columns where all together are; and in a batch."""
    columns = 600 if state == 10**6 else 3
    x = torch.zeros(4, columns, dtype=torch.long)
    x[1] = state
    options = {"parents": [()] * columns} if joint is BayesNet else {}
    visible = torch.ones(4, columns, dtype=torch.bool)
    visible[0, 0] = False
    calls = [lambda: joint.from_data(x, **options), lambda: joint.from_data(x, visible=visible, **options),
             lambda: joint.posterior(x, equivalent_sample_size=1.0, **options), lambda: joint.from_data(x, weights=torch.ones(2, 4), **options)]
    if joint is not ChowLiuTree:
        calls.append(lambda: joint.log_evidence(x, equivalent_sample_size=1.0, **options))
    for call in calls:
        with pytest.raises(ValueError, match=f"at most [0-9]+.*a variable of {state + 1} states"):
            call()


def test_the_batch_of_weights_counts_too():
    x = torch.tensor([[0], [2**20]])
    FullyIndependent.from_data(x, weights=torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"at most 134217728 cells, over all its batch.*1,073,742,848 cells"):
        FullyIndependent.from_data(x, weights=torch.ones(1024, 2))
