"""Completed images: what stands where."""

import io

import numpy as np
import pytest

from pyro_ar.plots import Completed, completion_panel


def one(model, value, draws=2, colours=False):
    image = np.full((4, 3, 3) if colours else (4, 3), float(value))
    seen = image.copy()
    if not colours:
        seen[0] = np.nan
    return Completed(model, image, seen, [image + i for i in range(draws)], image + 0.5, np.arange(12.0).reshape(4, 3))


def test_every_image_stands_in_its_place():
    figure = completion_panel([[one("a", 1), one("b", 2)], [one("a", 3)]], 8, title="Title", note="Note")
    figure.savefig(io.BytesIO(), format="png")
    shown = [axis for axis in figure.axes if axis.images and axis.get_ylabel() != "levels"]
    values = [float(np.nan_to_num(axis.images[0].get_array().filled(np.nan) if np.ma.isMaskedArray(axis.images[0].get_array()) else
                                  axis.images[0].get_array()).max()) for axis in shown]
    assert values == [1, 1, 1, 2, 1.5, 11, 2, 3, 2.5, 11, 3, 3, 3, 4, 3.5, 11]
    assert [axis.get_title() for axis in shown if axis.get_title()] == ["original", "seen", "draw 1", "draw 2", "mean", "std. dev."]
    assert [axis.get_ylabel() for axis in shown if axis.get_ylabel()] == ["a", "b", "a"]
    assert [len(axis.patches) for axis in shown[:3]] == [0, 1, 0]  # hidden cells are hatched where they are seen as hidden
    assert shown[2].images[0].get_clim() == (0, 7)
    assert shown[5].images[0].get_clim() == (0, 11)
    assert figure.get_suptitle() == "Title"


def test_colours_are_levels():
    figure = completion_panel([[one("a", 3, colours=True)]], 16)
    assert figure.axes[0].images[0].get_array()[0, 0].tolist() == pytest.approx([0.2] * 3)


@pytest.mark.parametrize("images", [[], [[]], [[one("a", 1), one("b", 1, draws=3)]]])
def test_bad_input(images):
    with pytest.raises(ValueError, match="completion_panel"):
        completion_panel(images, 8)
