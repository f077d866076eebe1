"""Orders: what is a permutation, and where the visible variables go."""

import pytest
import torch

from pyro_ar.order import channels_within_pixels, check_order, inverse, make_order, random_orders, visible_first


@pytest.mark.parametrize("bad", [[0, 0, 1], [1, 2, 3], [0, 1], [0.0, 1.0, 2.0], [[0, 1, 2], [0, 1, 1]], "012", 3, [True, False, True]])
def test_no_permutation_is_refused(bad) -> None:
    with pytest.raises(ValueError, match="order must"):
        make_order(bad, 3)


def test_the_row_that_is_no_permutation_is_shown() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1, 1\]"):
        check_order(torch.tensor([[0, 1, 2], [0, 1, 1]]), 3)


def test_what_a_user_may_say() -> None:
    assert make_order(None, 4).tolist() == [0, 1, 2, 3]
    assert make_order((2, 0, 1), 3).tolist() == [2, 0, 1]
    drawn = [make_order("random", 50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_random_orders_are_uniform() -> None:
    """24 permutations; chi-square with 23 degrees of freedom, false alarm 1e-4."""
    orders = random_orders(24000, 4, generator=torch.Generator().manual_seed(0))
    codes = (orders * torch.tensor([64, 16, 4, 1])).sum(-1)
    counts = codes.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 57.1


def test_inverse() -> None:
    orders = random_orders((3, 2), 6)
    assert torch.equal(orders.gather(-1, inverse(orders)), torch.arange(6).expand(3, 2, 6))


def test_visible_first_is_stable() -> None:
    order = torch.tensor([4, 2, 0, 3, 1])
    visible = torch.tensor([[True, False, True, False, False], [False] * 5, [True] * 5])
    assert visible_first(order, visible).tolist() == [[2, 0, 4, 3, 1], [4, 2, 0, 3, 1], [4, 2, 0, 3, 1]]


def test_channels_follow_one_another() -> None:
    assert channels_within_pixels((2, 2, 2)).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
