import io

import numpy as np
import pytest

from PIL import Image

from pyro_ar.classify import risk_coverage
from pyro_ar.plots.looking import Revealed, reveal_panel, risk_curves


def rendered(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("L"))


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]]


def curve(seed):
    random = np.random.default_rng(seed)
    confidence = random.random(50)
    return risk_coverage(confidence, random.random(50) < confidence)


def revealed(label=1, gains=True):
    gain = np.linspace(0, 1, 3 * 16).reshape(3, 4, 4)
    return Revealed("a one", np.arange(16.0).reshape(4, 4), np.array([5, 0, 15]), np.array([[0.5, 0.5], [0.7, 0.3], [0.4, 0.6], [0.06, 0.94]]),
                    gain if gains else None, label)


def test_risk_curves_say_what_they_show():
    first = curve(0)
    figure = risk_curves({"half hidden": {"posterior": first, "both": curve(1)}, "all": {"posterior": first}}, title="All", note="note")
    assert rendered(figure).std() > 5
    assert {"half hidden", "all", "rows answered, the surest first (%)", "wrong among the answers (%)"} <= set(texts(figure))
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == [f"posterior ({100 * first.area:.1f})", f"both ({100 * curve(1).area:.1f})"]
    line = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(line.get_xdata(), 100 * first.coverage)
    np.testing.assert_allclose(line.get_ydata(), 100 * first.risk)
    assert figure.axes[0].get_ylim()[1] > 100 * first.risk.max()


def test_reveal_panel_numbers_the_looks_and_frames_the_next_one():
    figure = reveal_panel([revealed(), revealed(None, gains=False)], ["no", "yes"], maps=(0, 2), title="All", note="note")
    assert rendered(figure).std() > 5
    shown = texts(figure)
    assert {"1", "2", "3", "94", "information after 0 looks (nats)", "information after 2 looks (nats)", "a one: looks in order"} <= set(shown)
    looked, moving, first, second = figure.axes[:4]
    (hidden,) = looked.patches
    assert len(hidden.get_path().to_polygons()) == 13  # cells
    places = {text.get_text(): text.get_position() for text in looked.texts}
    assert places == {"1": (1, 1), "2": (0, 0), "3": (3, 3)}  # column, row
    weights = [text.get_weight() for text in moving.texts]
    assert weights == ["normal", "normal", "bold", "bold"]
    frames = [axis.patches[0].get_xy() for axis in (first, second)]
    assert frames == [(0.5, 0.5), (2.5, 2.5)]


def test_maps_may_be_flat_or_absent():
    one = revealed()
    flat = Revealed(one.title, one.image, one.cells, one.posteriors, one.gains.reshape(3, 16), 1)
    np.testing.assert_array_equal(rendered(reveal_panel([flat], range(2), maps=(1,))), rendered(reveal_panel([one], range(2), maps=(1,))))
    assert len(reveal_panel([revealed(gains=False)], range(2)).axes) == 2


def test_bad_input():
    with pytest.raises(ValueError, match="at least one image"):
        reveal_panel([], range(2))
    with pytest.raises(ValueError, match="looks that there were"):
        reveal_panel([revealed()], range(2), maps=(3,))
    one = revealed()
    with pytest.raises(ValueError, match="one posterior more"):
        reveal_panel([Revealed("", one.image, one.cells, one.posteriors[1:])], range(2))
    with pytest.raises(ValueError, match="at least one panel"):
        risk_curves({})
