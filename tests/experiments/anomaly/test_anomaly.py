"""`pyro-ar anomaly`: who is scored by what, the rows made strange, AUROC by loops, and what the report says."""

import csv

import numpy as np
import pytest
import torch

from pyro_ar import data
from pyro_ar.cli import app as cli
from pyro_ar.data import Dataset
from pyro_ar.elliptical import StudentT
from pyro_ar.experiments.anomaly import detectors, report
from pyro_ar.experiments.anomaly import run as running
from pyro_ar.experiments.anomaly.detectors import RIVALS, auroc, fit_rival, log_p
from pyro_ar.experiments.anomaly.run import Plan, one_unit
from pyro_ar.experiments.anomaly.strange import KINDS, shuffle_columns
from pyro_ar.experiments.complete.answers import OfLevels
from pyro_ar.experiments.complete.lineup import Fitted, Model
from pyro_ar.tables import FullyIndependent

QUICK = "independent,local outlier factor"


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def plan():
    return Plan(data.digits().head(300), ("independent",), (0, 3))


def test_auroc_counts_pairs():
    ordinary, strange = torch.tensor([3.0, 1.0, -torch.inf, 2.0]), torch.tensor([1.0, 0.0, -torch.inf])
    pairs = [1.0 if s < o else 0.5 if s == o else 0.0 for o in ordinary.tolist() for s in strange.tolist()]
    assert auroc(ordinary, strange) == pytest.approx(np.mean(pairs))


def test_rows_made_strange(plan):
    space, _, _ = plan.parts(None)
    x = space.test
    assert set(plan.kinds) == {"class", *KINDS}
    corrupted = KINDS["corrupted"].make(x, space, generator())
    changed = (corrupted != x).sum(1)
    assert changed.max() == 6
    assert changed.float().mean() > 4  # a value drawn evenly may be the old one
    assert corrupted.unique().tolist() == list(range(17))
    shuffled = KINDS["shuffled"].make(x, space, generator())
    assert shuffled.sort(1).values.equal(x.sort(1).values)
    assert not shuffled.equal(x)
    assert KINDS["inverted"].make(x, space, generator()).equal(16 - x)
    image, smooth = x[0].reshape(8, 8), KINDS["smoothed"].make(x, space, generator())[0].reshape(8, 8)
    for i, j in ((0, 0), (3, 4), (7, 2)):
        about = [image[a, b].item() for a in range(i - 1, i + 2) for b in range(j - 1, j + 2) if 0 <= a < 8 and 0 <= b < 8]
        assert smooth[i, j] == round(sum(about) / 9)
    assert KINDS["blank"].make(x, space, generator()).tolist() == [[0] * 64]
    columns = shuffle_columns(x, generator())
    assert columns.sort(0).values.equal(x.sort(0).values)
    assert not columns.sum(1).equal(x.sum(1))


def test_no_row_of_the_class_left_out_and_none_twice(plan):
    every = {tuple(row): label for row, label in zip(plan.data.x.tolist(), plan.data.y.tolist(), strict=True)}
    space, back, left_out = plan.parts(3)
    parts = [[tuple(row) for row in part.tolist()] for part in (space.train, space.test, back, left_out)]
    assert sorted(row for part in parts for row in part) == sorted(every)
    assert {every[row] for row in parts[3]} == {3}
    assert 3 not in {every[row] for part in parts[:3] for row in part}
    rest = len(every) - len(parts[3])
    assert [len(part) for part in parts[1:3]] == [round(0.2 * rest), round(0.15 * (rest - round(0.2 * rest)))]


def test_scores_by_hand(plan, monkeypatch):
    """A joint of independent cells made here: AUROC by loops over pairs, and of the distance from the median."""
    seen = []

    def made(space, seed, steps):
        seen.append(space.train)
        return Fitted(FullyIndependent.from_data(space.train, num_states=17), 1)

    monkeypatch.setitem(detectors.MODELS, "independent", Model(made))
    found = one_unit(plan, {"part": "auroc", "model": "independent", "class": 3})
    space, back, left_out = plan.parts(3)
    assert seen[0].equal(space.train)
    joint = FullyIndependent.from_data(space.train, num_states=17)
    ordinary, strange = joint.log_prob(space.test), joint.log_prob(left_out)
    assert found["auroc"]["class"] == pytest.approx((strange < ordinary[:, None]).double().mean().item())
    middle = joint.log_prob(back).median()
    far = [(part - middle).abs() for part in (ordinary, strange)]
    assert found["two_sided"]["class"] == pytest.approx((far[1] > far[0][:, None]).double().mean().item())
    assert found["auroc"]["blank"] == pytest.approx((joint.log_prob(torch.zeros(64)) < ordinary).double().mean().item())


def test_densities_over_levels_are_read_in_the_middle_of_cells():
    joint = detectors._Real(detectors.Gaussian)(Plan(table()).parts(None)[0], 0, 1.0)
    x = torch.zeros(2, 3)
    assert log_p(OfLevels(joint, 4), x).equal(joint.log_prob(x.double() + 0.5))


def test_the_student_t_does_not_rank_as_a_gaussian():
    """Its scatter counts outliers less; in closed form it would be that of a Gaussian of one of these shrinkages."""
    space, _, _ = Plan(table(200)).parts(None)
    found = log_p(detectors.fit_joint("Student-t", space, 0, 1.0), space.train).argsort()
    for s in detectors.SHRINKAGES:
        for joint in (detectors.Gaussian, StudentT):
            assert not found.equal(joint.from_data(space.train.double(), shrinkage=s).log_prob(space.train.double()).argsort())


def table(n=80):
    torch.manual_seed(0)
    x = torch.randn(n, 1) + 0.3 * torch.randn(n, 3)
    return Dataset("table", torch.cat((x[:, :1] * 100, x[:, 1:]), 1))


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_find_what_breaks_the_columns_ties(name, monkeypatch):
    """Rows off the diagonal, each column of which is ordinary; settings are those that best tell shuffled columns apart, on rows that were not fitted to."""
    monkeypatch.setattr(detectors, "TREES", 40)
    space, back, _ = Plan(table(400)).parts(None)
    score, chosen = fit_rival(name, space.train, back, 0)
    assert chosen in [dict(options) for options in RIVALS[name][1]]
    off = torch.tensor([[1.5, -1.5, 1.5], [-1.5, 1.5, 0.0]])
    assert auroc(score(space.test), score(off)) > 0.85
    again, _ = fit_rival(name, space.train, back, 0)
    assert again(space.test).equal(score(space.test))


def test_settings_are_chosen_on_rows_held_back(monkeypatch):
    space, back, _ = Plan(table(400)).parts(None)

    class Fake:
        def __init__(self, train, k):
            self.k = k
            assert len(train) == len(space.train)

        def score_samples(self, rows):
            assert len(rows) == len(back)
            return -np.abs(rows - rows.mean(1, keepdims=True)).sum(1) * (1 if self.k == 7 else -1)

    monkeypatch.setitem(RIVALS, "isolation forest", (lambda train, seed, k: Fake(train, k), [{"k": 3}, {"k": 7}, {"k": 9}]))
    assert fit_rival("isolation forest", space.train, back, 0)[1] == {"k": 7}


def test_the_ranking_is_cross_fitted(monkeypatch):
    """Each row by a joint that it was not fitted to, in the units of the file."""
    rows = table(60)
    fitted = []

    def recorded(name, space, seed, steps):
        fitted.append(space)
        return StudentT.from_data(space.train.double(), shrinkage=0.01)

    monkeypatch.setattr(running, "fit_joint", recorded)
    plan = Plan(rows, ("Gaussian",), folds=3)
    found = one_unit(plan, plan.units[0])
    assert [len(space.test) for space in fitted] == [20, 20, 20]
    where = torch.zeros(60)
    for space in fitted:
        # both parts are standardised alike, so rows keep their order by the first column
        both = torch.cat((space.train, space.test))[:, 0].argsort()
        places = torch.empty(60, dtype=torch.long)
        places[both] = rows.x[:, 0].argsort()
        train, test = places[:40], places[40:]
        where[test] += 1
        scale, loc = rows.x[train].std(0), rows.x[train].mean(0)
        joint = StudentT.from_data(((rows.x[train] - loc) / scale).double(), shrinkage=0.01)
        by_hand = joint.log_prob(((rows.x[test] - loc) / scale).double()) - scale.double().log().sum()
        assert torch.tensor(found["log_p"])[test].numpy() == pytest.approx(by_hand.numpy(), abs=1e-3)
    assert where.tolist() == [1] * 60
    assert found["maps"] == {}


def test_the_command_and_its_files(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = ["anomaly", "--rows", "200", "--models", QUICK, "--classes", "0,1", "--steps", "0.1", "--workers", "1", "--out", str(out)]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 40
    assert {path.name for path in out.iterdir()} == {"results.json", "auroc.csv", "ranking.csv", "report.txt", "surprise.png"}
    found = rows_of(out / "auroc.csv")
    assert len(found) == 2 * 2 * 6
    mean = np.mean([float(row["auroc"]) for row in found if row["model"] == "independent" and row["strange"] == "class"])
    assert f"{100 * mean:.1f}±" in said
    assert "A likelihood fails on 'blank'" in " ".join(said.split())
    ranked = rows_of(out / "ranking.csv")
    assert sorted(int(row["row"]) for row in ranked) == list(range(200))
    scores = [float(row["log_p"]) for row in ranked]
    assert scores == sorted(scores)
    labels = data.digits().y
    assert all(int(row["label"]) == labels[int(row["row"])] for row in ranked)
    assert f"row {ranked[0]['row']} (class {ranked[0]['label']}) {scores[0]:.1f}" in " ".join(said.split())
    monkeypatch.setattr(running, "one_unit", None)
    monkeypatch.setattr(report, "_picture", lambda *of: None)
    assert cli.main(arguments) == 0
    assert " ".join(capsys.readouterr().out.split()).startswith(" ".join(said.split()).split("Written")[0].strip())


def test_maps_are_those_of_the_least_plausible_rows():
    plan = Plan(data.digits().head(100), ("independent",), (0,), rank_by="independent", folds=2)
    found = one_unit(plan, plan.units[0])
    least = np.argsort(found["log_p"])[:8].tolist()
    assert sorted(map(int, found["maps"])) == sorted(least)
    for row in least:
        maps = found["maps"][str(row)]
        assert sum(maps["before"]) == pytest.approx(-found["log_p"][row], abs=0.01)
        assert maps["others"] == pytest.approx(maps["before"], abs=1e-3)  # of independent cells


def test_a_table_of_real_values_without_labels(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(detectors, "TREES", 20)
    rows = table(120).x.numpy()
    rows[17] = [300, -3, 3]  # breaks the tie of the columns
    file = tmp_path / "table.csv"
    file.write_text("a,b,c\n" + "".join(",".join(f"{v:.5f}" for v in row) + "\n" for row in rows))
    assert cli.main(["anomaly", "--data", str(file), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert "all rows" in said
    assert "inverted" not in said
    assert "in standard deviations of each column" in " ".join(said.split())
    assert "\n\n\n" not in (tmp_path / "out" / "report.txt").read_text()
    assert rows_of(tmp_path / "out" / "ranking.csv")[0]["row"] == "17"
    found = {(row["model"], row["strange"]): float(row["auroc"]) for row in rows_of(tmp_path / "out" / "auroc.csv")}
    assert {model for model, _ in found} == {"Gaussian", "Student-t", *RIVALS}
    assert found["Student-t", "corrupted"] > 0.7


def test_what_the_report_says_of_failures():
    def unit(model, c, value, both=0.9):
        return {"part": "auroc", "model": model, "class": c, "auroc": {"class": value}, "two_sided": {"class": both}}

    fooled = [unit("independent", 0, 0.9), unit("independent", 1, 0.2, 0.7), unit("Gaussian", 0, 0.8), unit("Gaussian", 1, 0.6)]
    forest = [{"part": "auroc", "model": "isolation forest", "class": c, "auroc": {"class": v}} for c, v in ((0, 0.7), (1, 0.6))]
    said = list(report.failures([*fooled, *forest]))
    assert len(said) == 1
    assert "more plausible than ordinary rows: independent 20.0 % without 1." in said[0]
    assert "gives 70.0 to 70.0 %" in said[0]
    forest[0]["auroc"]["class"] = 0.9
    assert list(report.failures([*fooled[2:], *forest])) == ["On 'class' isolation forest (75.0 %) is ahead of every joint (the best is Gaussian, 70.0 %)."]
    assert report.summary(fooled)["independent"]["class"] == pytest.approx((0.55, np.std([0.9, 0.2], ddof=1)))


@pytest.mark.parametrize(("options", "message"), [
    (["--models", "GAN"], "model must be one of"), (["--classes", "11"], "classes must be labels"), (["--rank-by", "GAN"], "--rank-by must be one of"),
    (["--rows", "40"], "50 rows or more"), (["--steps", "0"], "steps must be more than 0"), (["--models", "Student-t"], "model must be one of"),
])
def test_bad_options_are_refused(options, message, tmp_path, capsys):
    assert cli.main(["anomaly", *options, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_hidden_cells_are_refused():
    x = torch.zeros(60, 2)
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match="complete rows"):
        Plan(Dataset("torn", x, None, 2))
