import io
import subprocess
import sys

import numpy as np
import pytest

from matplotlib.path import Path as MatplotlibPath
from PIL import Image

from pyro_ar import plots
from pyro_ar.plots import style


def rendered(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("L"))


def panels(models=3, n=4):
    series = {f"model {i}": plots.Series([i + 1.0] * n, [0.1] * n) for i in range(models)}
    return {"Accuracy (%)": series, "Log score (nats)": series}


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]]


def hidden_cells(patch):
    """Squares of one patch."""
    return int((patch.get_path().codes == MatplotlibPath.MOVETO).sum())


def tile(posteriors):
    seen = np.ones((8, 8), dtype=bool)
    seen[:, :4] = False
    return plots.Tile("left half", np.arange(64.0).reshape(8, 8), seen, 1, posteriors)


@pytest.mark.parametrize("models", [1, 3, 12])
def test_curves_say_what_they_show(models):
    figure = plots.curves(panels(models), [0, 25, 50, 90], x_label="hidden (%)", title="All", note="over 5 splits")
    assert rendered(figure).std() > 5  # not an empty page
    assert {"Accuracy (%)", "Log score (nats)", "hidden (%)"} <= set(texts(figure))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"model {i}" for i in range(models)]
    assert legend.get_title().get_text() == "over 5 splits"


def test_series_are_told_apart_without_colour():
    styles = [(s["marker"], s["linestyle"]) for s in style.line_styles()[:20]]
    assert len(set(styles)) == 20


def test_gaps_where_there_is_no_exact_answer():
    lines = {"Accuracy (%)": {"a": plots.Series([float("nan"), 2.0], [0.0, 0.1])}}
    rendered(plots.curves(lines, [0, 50], x_label="hidden (%)"))
    rendered(plots.dots(lines, ["left", "right"], y_label="what"))


def test_a_lone_point_is_not_hidden_by_the_lines():
    nan = float("nan")
    lines = {"a": plots.Series([1.0, 2.0], [0.0, 0.0]), "b": plots.Series([1.0, nan], [0.1, nan]), "c": plots.Series([1.0, nan], [0.1, nan])}
    figure = plots.curves({"Accuracy (%)": lines}, [0, 50], x_label="x")
    rendered(figure)
    places = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_marker() in style.MARKERS[:3]]
    assert len(set(places)) == 3
    assert all(-5 < place <= 0 for place in places)
    assert [handle.get_linestyle() for handle in figure.legends[0].legend_handles] == ["-", "None", "None"]


def test_dots():
    figure = plots.dots(panels(), ["left", "right", "top", "bottom"], y_label="what is hidden")
    assert rendered(figure).std() > 5
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["left", "right", "top", "bottom"]


def test_posterior_panel():
    tiles = [tile({"a": [0.1, 0.9], "b": [0.7, 0.3], "c": None})] * 3
    figure = plots.posterior_panel(tiles, ["no", "yes"], title="All")
    rendered(figure)
    shown = texts(figure)
    assert {"true class yes", "left half hidden", "90", "70", "no exact answer"} <= set(shown)
    (patch,) = figure.axes[1].patches
    assert hidden_cells(patch) == 32


def test_legends_and_axes_do_not_overlap():
    figures = [plots.curves(panels(9), [0, 25, 50, 90], x_label="x", note="a\nb"), plots.dots(panels(9), list("abcd"), y_label="y"),
               plots.posterior_panel([tile({f"model {i}": [0.5, 0.5] for i in range(9)})] * 4, [0, 1], note="note")]
    for figure in figures:
        rendered(figure)
        legend = figure.legends[0].get_window_extent()
        for axis in figure.axes:
            if axis.axison:
                assert not legend.overlaps(axis.get_tightbbox())


@pytest.mark.parametrize("hidden", [None, np.arange(64).reshape(8, 8) >= 32])
def test_image_rows(hidden):
    images = [np.arange(64.0).reshape(8, 8)] * 3
    figure = plots.image_rows({"true": images, "seen": images, "drawn": images}, hidden=hidden, unseen="seen", title="All", note="note")
    assert rendered(figure).std() > 5
    assert {"true", "seen", "drawn"} <= set(texts(figure))
    hatched = [sum(map(hidden_cells, axis.patches)) for axis in figure.axes]
    shaded = [len(axis.images) for axis in figure.axes]
    assert hatched == ([0] * 9 if hidden is None else [0] * 3 + [32] * 3 + [0] * 3)
    assert shaded == ([1] * 9 if hidden is None else [1] * 6 + [2] * 3)


def test_bad_input():
    with pytest.raises(ValueError, match="equally many images"):
        plots.image_rows({"a": [np.zeros((2, 2))], "b": []})
    with pytest.raises(ValueError, match="one value per position"):
        plots.curves(panels(), [0, 1], x_label="x")
    with pytest.raises(ValueError, match="one value per category"):
        plots.dots(panels(), ["a"], y_label="y")
    with pytest.raises(ValueError, match="at least one panel"):
        plots.curves({}, [0], x_label="x")
    with pytest.raises(ValueError, match="at least one example"):
        plots.posterior_panel([], [0, 1])


def test_no_global_state():
    code = "import sys, pyro_ar.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reliability_panels():
    generator = np.random.default_rng(0)
    count = np.array([0, 5, 40, 100])
    bins = np.stack([count, np.floor(count * generator.uniform(size=4)), count * [0.1, 0.3, 0.6, 0.9]], 1)
    figure = plots.reliability_panels({f"model {i}": {"50 %": bins, "90 %": bins} for i in range(7)}, title="All", note="a note")
    assert rendered(figure).std() > 5
    assert {f"model {i}" for i in range(7)} <= set(texts(figure))
    upper = next(axis for axis in figure.axes if axis.get_title() == "model 0")
    points = upper.get_lines()[1]
    assert points.get_xdata().tolist() == pytest.approx([0.6, 0.9])  # bins with few rows have no point
    assert points.get_ydata().tolist() == pytest.approx((bins[2:, 1] / count[2:]).tolist())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["50 %", "90 %"]
    assert sum(axis.axison for axis in figure.axes) == 14
    with pytest.raises(ValueError, match="at least one panel"):
        plots.reliability_panels({})
