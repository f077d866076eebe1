"""The last screen of `pyro-ar compare` and its picture, with nine models; and tables with hidden cells."""

import math

import numpy as np
import pytest
import torch

from pyro_ar.cli import app as cli
from pyro_ar.comparison import Difference
from pyro_ar.experiments.compare import report as comparison_report
from pyro_ar.experiments.compare.pictures import style_of
from pyro_ar.experiments.compare.report import Summary, run_compare
from pyro_ar.experiments.compare.run import MODELS, PSEUDOCOUNTS, IncompleteTable, Plan
from pyro_ar.experiments.compare.screen import LINES, WIDTH, screen, verdict
from pyro_ar.experiments.distances import Distance
from pyro_ar.experiments.distances import draw as draw_distances
from pyro_ar.tables import FullyIndependent, MarkovChain

SIZES = (25, 100, 400, 1600, 6400, 16181)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")  # Lightning's


def summaries(sizes=SIZES, models=MODELS):
    """The first model is the best everywhere; one is far behind."""
    found = []
    for rows in sizes:
        for i, model in enumerate(models):
            nats = 6 + 0.01 * i + (30 if i == 5 else 0)
            found.append(Summary(model, rows, nats, 0.05, Difference(nats - 6, 0.004 * (i > 0)), 10**i + 5, None if i > 5 else -2e5,
                                 None if i > 5 else 0.2, 3.0))
    return found


def test_one_screen(tmp_path):
    for sizes in (SIZES, tuple(range(100, 2500, 100)), (25,)):
        lines = screen(summaries(sizes), 4000, tmp_path, ("report.txt", "curve.png")).splitlines()
        assert len(lines) <= LINES
        assert all(len(line) <= WIDTH for line in lines if str(tmp_path) not in line)
        text = "\n".join(lines)
        assert f"{MODELS[0]} is first with {sizes[-1]:,} training rows: 6.0000 ± 0.0500 nats per row" in text
        assert f"{MODELS[1]} is 0.0100 ± 0.0040 behind" in text
        assert f"Written to {tmp_path}/" in text
        assert all(name in text for name in MODELS)
        assert (f"{len(sizes) - text.count('6.0000*')} smaller numbers of rows are in report.txt" in text) == (len(sizes) > 10)


def test_a_draw_is_called_one():
    two = [Summary("a", 9, 1.0, 0.1, Difference(0.0, 0.0), 1, None, None, 1.0), Summary("b", 9, 1.01, 0.1, Difference(0.01, 0.02), 1, None, None, 1.0)]
    assert verdict(two).endswith("b is 0.0100 ± 0.0200 behind: no more than two standard errors")
    assert verdict([two[0], two[1]._replace(worse_by=Difference(0.01, 0.004))]).endswith("behind")
    assert verdict([two[0], two[1]._replace(worse_by=Difference(0.01, 0.006))]).endswith("two standard errors")  # 1.7 of them
    assert verdict(two[:1]) == "a is first with 9 training rows: 1.0000 ± 0.1000 nats per row"


def points(axis):
    """Colour, and positions in points and with their bars, of every line of a panel."""
    for bars in axis.containers:
        line, _, (segments,) = bars.lines
        yield line.get_color(), line.get_xdata(), np.concatenate([s[:, 1] for s in segments.get_segments()]), line


def test_every_bar_is_inside_and_beside_the_others():
    x = torch.randint(0, 2, (20_000, 5))
    plan = Plan("coins", x[:16181], x[16181:], SIZES, MODELS)
    figure = comparison_report._draw(plan, [s for s in summaries() if s.model in plan.models])
    assert len(figure.axes) == 2
    for axis in figure.axes:
        (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
        lines = list(points(axis))
        assert len(lines) == len(plan.models) == 10
        for _, at, bars, _ in lines:
            assert ((left < at) & (at < right)).all()
            assert ((low < bars) & (bars < high)).all()
        together = np.sort(np.concatenate([at for _, at, _, _ in lines]))
        assert (np.diff(together) > 0).all()  # no two bars at one place
        for i, size in enumerate(SIZES):  # nor nearer to another number of rows than to their own
            assert all(min(SIZES, key=lambda other: abs(math.log(other / at[i]))) == size for _, at, _, _ in lines)
    (legend,) = figure.legends
    assert [t.get_text().split(" (")[0] for t in legend.get_texts()] == list(plan.models)
    assert all(axis.get_legend() is None for axis in figure.axes)


def test_a_model_looks_the_same_in_every_picture():
    marks = [(style["color"], style["marker"], style["linestyle"]) for style in map(style_of, MODELS)]
    assert len(set(marks)) == len(MODELS)
    assert len({(colour, dash) for colour, _, dash in marks}) == len(MODELS)
    x = torch.randint(0, 2, (400, 5))
    few = ("Markov chain 2", "FVSBN")
    figures = [comparison_report._draw(Plan("coins", x[:300], x[300:], (25, 100), models), summaries((25, 100), models)) for models in (MODELS, few)]
    figures.append(draw_distances([Distance(m, rows, 0.1, 0.2 / rows, 0.01, 7) for m in ("FVSBN", "Markov chain 2") for rows in (20, 100)]))
    for figure in figures:
        text = [t.get_text() for t in figure.legends[0].get_texts()]
        for name in few:
            at = next(i for i, t in enumerate(text) if t.startswith(name))
            handle = figure.legends[0].legend_handles[at]
            assert (handle.get_color(), handle.get_marker(), handle.get_linestyle()) == tuple(style_of(name).values())
            assert any(line.get_color() == style_of(name)["color"] and line.get_marker() == style_of(name)["marker"]
                   for _, _, _, line in points(figure.axes[0]))


def test_the_rest_is_in_a_file(tmp_path, capsys):
    torch.manual_seed(0)
    x = MarkovChain(torch.zeros(2), 1.5 * torch.eye(2).expand(4, 2, 2)).sample((200,)).int().numpy()
    np.savetxt(tmp_path / "data.csv", x, fmt="%d", delimiter=",", header="a,b,c,d,e", comments="")
    threads, out = torch.get_num_threads(), tmp_path / "out"
    arguments = ["compare", "--data", str(tmp_path / "data.csv"), "--out", str(out), "--models", "independent,Markov chain 1", "--sizes", "40,160"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "is first with 160 training rows" in said
    report = (out / "report.txt").read_text()
    assert "40 training rows\nmodel" in report
    assert "averages over the strength of a prior add none" in " ".join(report.split())
    assert "40 training rows\nmodel" not in said
    assert cli.main([*arguments, "--full"]) == 0
    torch.set_num_threads(threads)
    assert "40 training rows\nmodel" in capsys.readouterr().out


# Hidden cells.


@pytest.fixture
def holes():
    torch.manual_seed(1)
    x = MarkovChain(torch.zeros(2), 1.5 * torch.eye(2).expand(3, 2, 2)).sample((150,))
    return torch.where(torch.rand(x.shape) < 0.2, math.nan, x)


def test_scores_are_of_the_visible_cells(holes, tmp_path):
    """Independent cells by counting what is visible, one cell after another."""
    train, test = holes[:120], holes[120:]
    recipe = IncompleteTable(FullyIndependent, {}, (2, 2, 2, 2))
    joint = recipe.fit(train)
    scores = {}
    for pseudocount in PSEUDOCOUNTS:
        columns = ([v for v in column if not math.isnan(v)] for column in train.T.tolist())
        share = [(sum(v == 1 for v in c) + pseudocount) / (len(c) + 2 * pseudocount) for c in columns]
        scores[pseudocount] = [sum(math.log(p if v else 1 - p) for p, v in zip(share, row, strict=True) if not math.isnan(v)) for row in test.tolist()]
    found = joint.marginal(~test.isnan()).log_prob(test).tolist()
    assert any(found == pytest.approx(wanted, abs=1e-5) for wanted in scores.values())
    lines = [",".join("" if math.isnan(v) else str(int(v)) for v in row) for row in holes.tolist()]
    (tmp_path / "holes.csv").write_text("\n".join(["a,b,c,d", *lines]))
    said = []
    units = run_compare(str(tmp_path / "holes.csv"), out=tmp_path / "out", sizes=(120,), steps=10, say=said.append,
                        models=("independent", "Markov chain 1", "Chow-Liu tree", "any-order NADE"))
    assert all(math.isfinite(s.nats) and s.log_evidence is None for s in units)
    assert units[-1].model in ("independent", "any-order NADE")
    text = "\n".join(said)
    assert "empty cells are hidden cells, in 4 columns: a (" in text
    assert "tables are fitted by EM" in text


def test_models_that_want_complete_rows_are_left_out(holes, tmp_path):
    plan = Plan("holes", holes[:120], holes[120:])
    assert plan.blind == ("FVSBN", "NADE")
    assert not {"FVSBN", "NADE"} & set(plan.models)
    assert "any-order NADE" in plan.models
    assert plan.num_states == (2, 2, 2, 2)
    assert "left out, they learn from complete rows only, and cells of these are hidden: FVSBN, NADE" in comparison_report._left_out(plan, True)
    with pytest.raises(ValueError, match="NADE learns from complete rows only"):
        Plan("holes", holes[:120], holes[120:], models=("NADE",))
    whole = holes.nan_to_num(0)
    assert Plan("whole", whole[:120], whole[120:]).blind == ()
    assert Plan("test only", whole[:120], holes[120:]).blind == ("FVSBN", "NADE")


def test_the_pseudocount_is_chosen_on_rows_that_the_trial_fits_have_not_seen(holes, monkeypatch):
    fitted, scored = [], []
    whole = IncompleteTable._fitted

    def recorded(self, x, pseudocount):
        fitted.append(x)
        joint = whole(self, x, pseudocount)
        marginal = joint.marginal
        joint.marginal = lambda visible: scored.append(visible) or marginal(visible)
        return joint

    monkeypatch.setattr(IncompleteTable, "_fitted", recorded)
    IncompleteTable(FullyIndependent, {}, (2, 2, 2, 2)).fit(holes)
    assert [len(x) for x in fitted] == [135] * len(PSEUDOCOUNTS) + [150]
    assert len(scored) == len(PSEUDOCOUNTS)
    # Together they are all rows, each once.
    rows = sorted(map(str, [*(~fitted[0].isnan()).tolist(), *scored[0].tolist()]))
    assert rows == sorted(map(str, (~holes.isnan()).tolist()))
