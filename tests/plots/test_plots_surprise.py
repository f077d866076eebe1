"""Maps of surprise: what stands where, on one scale."""

import io

import numpy as np
import pytest

from pyro_ar.plots import surprise_maps


def test_maps_stand_below_their_images():
    images = [np.full((2, 3), v) for v in (1.0, 4.0)]
    maps = {"a": [np.full((2, 3), v) for v in (2.0, 3.0)], "b": [np.full((2, 3), v) for v in (5.0, 7.0)]}
    figure = surprise_maps(images, maps, ["one", "two"], title="Title", note="Note")
    figure.savefig(io.BytesIO(), format="png")
    shown = [axis for axis in figure.axes if axis.images]
    assert [float(axis.images[0].get_array().max()) for axis in shown] == [1, 4, 2, 3, 5, 7]
    assert [axis.get_title() for axis in shown[:2]] == ["one", "two"]
    assert [axis.get_ylabel() for axis in shown if axis.get_ylabel()] == ["a", "b"]
    assert {axis.images[0].get_clim() for axis in shown[2:]} == {(0, 7)}
    assert {axis.images[0].get_clim() for axis in shown[:2]} == {(0, 4)}


@pytest.mark.parametrize(("images", "maps", "captions"), [
    ([], {"a": []}, []), ([np.ones((2, 2))], {}, []), ([np.ones((2, 2))], {"a": []}, []), ([np.ones((2, 2))], {"a": [np.ones((2, 2))]}, ["x", "y"]),
])
def test_bad_input(images, maps, captions):
    with pytest.raises(ValueError, match="surprise_maps wants"):
        surprise_maps(images, maps, captions)
