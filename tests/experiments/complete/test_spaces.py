"""Pixels, blocks and colours: one to one, by slow loops, and without a shared pixel between training and test."""

import math

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_ar import data
from pyro_ar.data import Dataset
from pyro_ar.experiments.complete import lineup
from pyro_ar.experiments.complete.spaces import blocks, colours, from_blocks, from_greys, of_blocks, of_greys, pixels
from pyro_ar.experiments.complete.tasks import TASKS, affected


def test_blocks_are_rounded_means_and_differences():
    """By loops over whole numbers; all 4^4 blocks of four levels are told apart."""
    x = torch.cartesian_prod(*[torch.arange(4)] * 4).reshape(-1, 2, 2)
    planes = of_blocks(x)
    for block, found in zip(x.tolist(), planes.flatten(1).tolist(), strict=True):
        (a, b), (c, d) = block
        upper, lower = (a + b) // 2, (c + d) // 2
        assert found == [(upper + lower) // 2, upper - lower, a - b, c - d]
        assert 0 <= (a + b + c + d) / 4 - found[0] <= 1
    assert len({tuple(row) for row in planes.flatten(1).tolist()}) == 4**4
    assert from_blocks(planes).equal(x)


def test_where_blocks_lie():
    x = torch.arange(24.0).reshape(1, 4, 6)
    planes = of_blocks(x)
    assert planes.shape == (1, 4, 2, 3)
    assert planes[0, 0].tolist() == [[3, 5, 7], [15, 17, 19]]
    assert planes[0, 1].unique().tolist() == [-6]
    assert planes[0, 2:].unique().tolist() == [-1]
    assert from_blocks(planes).equal(x)


def test_greys_are_weighted_means_and_differences():
    rgb = torch.cartesian_prod(*[torch.arange(5)] * 3).T.reshape(3, 5, 25)
    planes = of_greys(rgb)
    for (r, g, b), found in zip(rgb.flatten(1).T.tolist(), planes.flatten(1).T.tolist(), strict=True):
        assert found == [(r + 2 * g + b) // 4, b - g, r - g]
    assert len({tuple(row) for row in planes.flatten(1).T.tolist()}) == 5**3
    assert from_greys(planes).equal(rgb)


def test_images_come_back_and_no_row_is_in_both_parts():
    digits = data.digits().head(150)
    plain = pixels(digits, 0.2, 3)
    assert (plain.train.shape, plain.test.shape, plain.event_shape, plain.num_states) == ((120, 64), (30, 64), (1, 8, 8), 17)
    every = sorted(map(tuple, torch.cat((plain.train, plain.test)).tolist()))
    assert every == sorted(map(tuple, digits.x.tolist()))
    assert not plain.test.equal(pixels(digits, 0.2, 4).test)
    coarse = blocks(plain)
    assert coarse.event_shape == (4, 4, 4)
    assert coarse.images(coarse.test).equal(plain.images(plain.test))
    assert coarse.images(torch.stack((coarse.test, coarse.test))).shape == (2, 30, 8, 8)
    assert 0 <= coarse.train.min() <= coarse.train.max() < coarse.num_states == 33
    assert coarse.train[:, :16].max() < 17


@pytest.fixture
def photographs(monkeypatch):
    """Two of 64x96 pixels, in which every pixel of the halved picture has a colour of its own."""
    places = torch.arange(2 * 32 * 48).reshape(2, 32, 48)
    rgb = torch.stack([places // 256, places // 16 % 16, places % 16], -1) * 16
    images = rgb.repeat_interleave(2, 1).repeat_interleave(2, 2).numpy().astype(np.uint8)
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: SimpleNamespace(images=list(images)))
    return places


def test_patches_of_photographs(photographs):
    space = colours()
    assert (space.num_states, space.levels, space.event_shape) == (31, 16, (3, 8, 8))
    where = [(image[..., 0] * 256 + image[..., 1] * 16 + image[..., 2]).long() for image in (space.images(space.train), space.images(space.test))]
    patches = {tuple(photographs[k, i:i + 8, j:j + 8].flatten().tolist()) for k in range(2) for i in range(0, 25, 4) for j in range(0, 41, 4)}
    for found in where:
        assert {tuple(patch) for patch in found.flatten(1).tolist()} <= patches
        assert len({tuple(patch) for patch in found.flatten(1).tolist()}) == len(found)
    train, test = (set(found.flatten().tolist()) for found in where)
    assert not train & test
    assert train | test == set(photographs.flatten().tolist())
    assert len(where[1]) * 64 == len(test)  # test patches do not overlap
    assert len(test) <= len(train) / 2
    fitted, held = lineup._inner(space)  # settings are chosen on tiles of their own
    assert space.together == 9
    assert len(held) == 9
    assert len(fitted) + len(held) == len(space.train)
    both = [{tuple(rgb) for rgb in space.images(part).flatten(0, 2).tolist()} for part in (fitted, held)]
    assert not both[0] & both[1]


def test_patches_of_the_photographs_that_ship():
    space = colours()
    assert space.train.shape[1] == 192
    assert len(lineup._inner(space)[1]) == 342
    assert len(space.train) > 3000
    assert len(space.test) > 500
    images = space.images(space.test)
    assert images.min() >= 0
    assert images.max() == 15
    grey = ((images[..., 0] + 2 * images[..., 1] + images[..., 2]) / 4).floor()
    assert space.test[:, :64].equal(grey.flatten(1))


def test_what_each_task_hides():
    plain = pixels(data.digits().head(100), 0.2, 0)
    hidden = {name: (~task.visible(plain, 20, 0)).reshape(20, 8, 8) for name, task in TASKS.items() if task.space == "pixels"}
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True
    rows = torch.arange(8)[:, None].expand(8, 8)
    wanted = {"inpainting": inside, "uncropping": ~inside, "lower-half": rows >= 4, "upper-half": rows < 4,
              "sub-grid": (rows % 2 == 1) | (rows.T % 2 == 1)}
    for name, pattern in wanted.items():
        assert hidden[name].equal(pattern.expand(20, 8, 8))
    assert hidden["restoration"].flatten(1).sum(1).tolist() == [32] * 20
    assert len({tuple(row) for row in hidden["restoration"].flatten(1).tolist()}) == 20
    assert hidden["restoration"].equal((~TASKS["restoration"].visible(plain, 20, 0)).reshape(20, 8, 8))
    assert affected(plain, ~hidden["inpainting"].flatten(1)).equal(inside.expand(20, 8, 8))


def test_the_visible_plane_is_the_coarse_or_grey_image(photographs):
    coarse = blocks(pixels(data.digits().head(100), 0.2, 0))
    seen = TASKS["super-resolution"].visible(coarse, 5, 0)
    image = coarse.images(coarse.test[:5])
    pairs = ((image[..., ::2] + image[..., 1::2]) / 2).floor()
    means = ((pairs[:, ::2] + pairs[:, 1::2]) / 2).floor()
    assert coarse.test[:5][seen].equal(means.flatten())
    space = colours()
    seen = TASKS["colourisation"].visible(space, 5, 0)
    assert seen.sum(1).tolist() == [64] * 5
    assert seen[:, :64].all()
    assert affected(space, seen).shape == (5, 8, 8, 3)
    assert affected(space, seen).all()


@pytest.mark.parametrize(("rows", "options", "said"), [
    (Dataset("t", torch.zeros(30, 4), None, 2), (0.2, 0), "complete images of levels"),
    (Dataset("t", torch.zeros(30, 4), None, None, (2, 2)), (0.2, 0), "complete images of levels"),
    (Dataset("t", torch.full((30, 4), math.nan), None, 2, (2, 2)), (0.2, 0), "complete images of levels"),
    (Dataset("t", torch.zeros(19, 4), None, 2, (2, 2)), (0.2, 0), "20 rows or more"),
    (Dataset("t", torch.zeros(30, 4), None, 2, (2, 2)), (1.0, 0), "test_share"),
])
def test_what_is_no_set_of_images(rows, options, said):
    with pytest.raises(ValueError, match=said):
        pixels(rows, *options)


def test_odd_images_have_no_blocks():
    with pytest.raises(ValueError, match="even height and width"):
        of_blocks(torch.zeros(3, 4, 5))
