import pytest
import torch

from pyro_ar import visible


def picture(pattern):
    """A pattern as text: # is hidden, . is seen."""
    return ["".join(".#"[not seen] for seen in row) for row in pattern.tolist()]


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("event", [64, (8, 8), (3, 5, 7), 1])
def test_random_hides_the_exact_fraction_in_every_row(event, fraction):
    pattern = visible.random(event, fraction, rows=9, generator=torch.Generator().manual_seed(0))
    shape = (event,) if isinstance(event, int) else event
    assert pattern.shape == (9, *shape)
    assert pattern.dtype == torch.bool
    hidden = (~pattern).flatten(1).sum(1)
    assert (hidden == round(fraction * pattern[0].numel())).all()


def test_random_is_reproducible_nested_and_differs_between_rows():
    def draw(fraction):
        return visible.random((8, 8), fraction, rows=50, generator=torch.Generator().manual_seed(3))

    assert torch.equal(draw(0.5), draw(0.5))
    assert not (draw(0.75) & ~draw(0.25)).any()
    assert len({tuple(row) for row in draw(0.5).flatten(1).tolist()}) == 50


def test_random_treats_all_cells_alike():
    # Mean over 4000 rows of Bernoulli(0.25) per cell: standard error 0.0068; 5 of them over 64 cells, false alarm 4e-5.
    pattern = visible.random(64, 0.25, rows=4000, generator=torch.Generator().manual_seed(1))
    assert ((~pattern).double().mean(0) - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_random_without_rows_is_one_pattern():
    assert visible.random((4, 6), 0.5).shape == (4, 6)
    assert visible.random(6, 0.5, rows=0).shape == (0, 6)


def test_pictures_of_the_shapes():
    assert picture(visible.half((2, 5), "left")) == ["##...", "##..."]
    assert picture(visible.half((2, 5), "right")) == ["...##", "...##"]
    assert picture(visible.half((3, 2), "top")) == ["##", "..", ".."]
    assert picture(visible.half((3, 2), "bottom")) == ["..", "..", "##"]
    assert picture(visible.patch((4, 4))) == ["....", ".##.", ".##.", "...."]
    assert picture(visible.patch((3, 4), size=(1, 2), position=(2, 0))) == ["....", "....", "##.."]
    assert picture(visible.border((3, 4))) == ["####", "#..#", "####"]
    assert picture(visible.border((3, 4), width=2)) == ["####"] * 3
    assert picture(visible.border((3, 4), width=0)) == ["...."] * 3
    assert picture(visible.stripes((5, 2), width=2)) == ["..", "..", "##", "##", ".."]
    assert picture(visible.stripes((2, 5), vertical=True)) == [".#.#.", ".#.#."]


def test_vectors_and_channels():
    assert visible.half(4, "left").tolist() == [False, False, True, True]
    assert visible.stripes(4, vertical=True).tolist() == [True, False, True, False]
    image = visible.patch((3, 8, 8))
    assert image.shape == (3, 8, 8)
    assert torch.equal(image[0], image[2])
    assert visible.check_visible(visible.half((8, 8), "top"), torch.Size((8, 8))).shape == (8, 8)
    assert visible.check_visible(visible.half((8, 8), "top").flatten(-2), torch.Size((64,))).shape == (64,)


@pytest.mark.parametrize("make", [
    lambda: visible.half((4, 4), "left"), lambda: visible.patch((4, 4)),
    lambda: visible.border((4, 4)), lambda: visible.stripes((4, 4)),
])
def test_patterns_may_be_written_to(make):
    pattern = make()
    changed = pattern.clone()
    pattern[0, 0], changed[0, 0] = ~pattern[0, 0], ~changed[0, 0]
    assert torch.equal(pattern, changed)  # no cell shares its memory with another


@pytest.mark.parametrize(("call", "match"), [
    (lambda: visible.random(8, 1.5), r"hidden fraction must be in \[0, 1\]; got 1.5"),
    (lambda: visible.random(8, -0.1), "hidden fraction"),
    (lambda: visible.random(8, float("nan")), "hidden fraction"),
    (lambda: visible.random(8, "0.5"), "hidden fraction"),
    (lambda: visible.random(0, 0.5), "positive int"),
    (lambda: visible.random((), 0.5), "positive int"),
    (lambda: visible.random(8, 0.5, rows=-1), "rows"),
    (lambda: visible.half((4, 4), "middle"), "'left', 'right', 'top' or 'bottom'; got 'middle'"),
    (lambda: visible.half(4, "top"), r"needs an event shape \(height, width\)"),
    (lambda: visible.patch(16), r"end in \(height, width\); got 16"),
    (lambda: visible.patch((4, 4), size=5), "fit into 4x4"),
    (lambda: visible.patch((4, 4), size=2, position=(3, 0)), "inside 4x4"),
    (lambda: visible.border((4, 4), width=-1), "0 or more"),
    (lambda: visible.stripes((4, 4), width=0), "1 or more"),
    (lambda: visible.stripes(4), "horizontal stripes"),
    (lambda: visible.check_visible(torch.ones(4), torch.Size((4,))), "bool tensor"),
    (lambda: visible.check_visible(torch.ones(3, dtype=torch.bool), torch.Size((4,))), "broadcasts to the event"),
])
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
