"""What a family cannot close, and what it has not closed yet."""

import csv
import json

import pytest
import torch

from pyro_ar.cli import app as cli
from pyro_ar.experiments import distances as of_distances
from pyro_ar.experiments.distances import (
    TRUTHS,
    NewtonModel,
    closest_family,
    distances,
    draw,
    make_truth,
    run_distances,
)
from pyro_ar.inference.divergence import closest_table, kl_divergence
from pyro_ar.mixture import Mixture
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.tables import FullyIndependent


@pytest.fixture
def truth(float64):
    torch.manual_seed(0)
    return Mixture(torch.zeros(3), FullyIndependent(1.5 * torch.randn(3, 5, 2)))


def test_the_story(truth):
    """Floors fall with what a family may say; the open part falls with the rows, and is larger the more there is to learn."""
    found = {(d.model, d.rows): d for d in distances(truth, {"FVSBN": lambda: FVSBN(5)}, sizes=(30, 3000), repeats=3)}
    floor = {name: d.floor for (name, _), d in found.items()}
    assert floor["independent"] > floor["Markov chain 1"] > floor["Markov chain 2"] > floor["Markov chain 3"] > floor["full table"] > -1e-9
    assert floor["full table"] == pytest.approx(0, abs=1e-9)
    assert floor["independent"] > floor["Chow-Liu tree"]
    assert floor["independent"] > floor["FVSBN"] > 1e-4
    for (name, rows), d in found.items():
        assert d.open > -1e-6, name
        if rows == 3000:
            assert d.open < 0.1 * found[name, 30].open
    assert found["full table", 30].open > 2 * found["independent", 30].open
    assert found["independent", 30].open + floor["independent"] < found["full table", 30].open + floor["full table"] + 0.6
    assert len(draw(list(found.values())).axes) == 2


def test_the_closest_fvsbn(truth):
    """A climb from elsewhere ends in the same place, and small steps from it lead away."""
    nearest = closest_family(truth, lambda: FVSBN(5))
    distance = kl_divergence(truth, nearest)
    again = kl_divergence(truth, closest_family(truth, lambda: FVSBN(5), seed=5))
    assert again.item() == pytest.approx(distance.item(), abs=1e-6)
    for _ in range(10):
        other = nearest.with_tensors({k: t + 0.05 * torch.randn_like(t) for k, t in nearest.tensors.items()})
        assert kl_divergence(truth, other) > distance - 1e-9
    assert distance < kl_divergence(truth, closest_table(truth, FullyIndependent))  # which is an FVSBN without weights


def test_newton_is_penalised_maximum_likelihood(float64):
    """One variable: the logit solves N p - ones + logit / scale^2 = 0."""
    x = torch.tensor([[1.0]] * 7 + [[0.0]] * 3)
    logit = NewtonModel(lambda: FVSBN(1), scale=1.5).fit(x).tensors["bias"].reshape(())
    assert (10 * logit.sigmoid() - 7 + logit / 1.5**2).item() == pytest.approx(0, abs=1e-3)


def test_bad_input_is_named(truth):
    with pytest.raises(ValueError, match="repeats must be 2"):
        distances(truth, {}, repeats=1)
    with pytest.raises(ValueError, match="one joint of at most"):
        closest_family(truth.expand((2,)), lambda: FVSBN(5))
    with pytest.raises(ValueError, match="sizes must be different"):
        distances(truth, {}, sizes=(50, 0))
    with pytest.raises(ValueError, match="truth must be one of mixture"):
        make_truth("GAN")
    with pytest.raises(ValueError, match="variables must be 2 to 10"):
        make_truth("chain", 11)
    with pytest.raises(ValueError, match="positive"):
        NewtonModel(lambda: FVSBN(5), scale=0.0)


@pytest.mark.parametrize(("name", "holds"), [("chain", "Markov chain 1"), ("tree", "Chow-Liu tree"), ("coins", "independent")])
def test_a_family_that_holds_the_truth_has_no_floor(name, holds):
    truth = make_truth(name, 4)
    found = {d.model: d for d in distances(truth, {}, sizes=(4000,), repeats=2)}
    assert found[holds].floor == pytest.approx(0, abs=1e-9)
    assert found[holds].open < 0.02
    assert name == "coins" or found["independent"].floor > 0.1
    assert set(TRUTHS) >= {name}


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    """One model is lost at most, and none is fitted twice; the answer is that of an undisturbed run, without its generators' state."""
    fitted, fit = [], of_distances.fit_recipe

    def stops(name, *rest):
        fitted.append(name)
        if len(fitted) == 6:  # the second repeat of the third model
            raise KeyboardInterrupt
        return fit(name, *rest)

    options = {"truth": "tree", "variables": 2, "sizes": (20,), "repeats": 2, "say": lambda line: None}
    whole = run_distances(out=tmp_path / "whole", **options)
    names = [d.model for d in whole]
    monkeypatch.setattr(of_distances, "fit_recipe", stops)
    with pytest.raises(KeyboardInterrupt):
        run_distances(out=tmp_path / "out", **options)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["units"]
    assert [unit["model"] for unit in kept] == names[:2]
    fitted.clear()
    fitted.extend([""] * 6)
    torch.manual_seed(9)
    assert run_distances(out=tmp_path / "out", **options) == whole
    assert fitted[6:] == [name for name in names[2:] for _ in range(2)]
    fitted[6:] = []
    assert run_distances(out=tmp_path / "out", **options) == whole  # nothing is left to do
    assert len(fitted) == 6
    assert (tmp_path / "out" / "results.csv").read_text() == (tmp_path / "whole" / "results.csv").read_text()
    with pytest.raises(ValueError, match=r"other settings \(repeats, seed\)"):
        run_distances(out=tmp_path / "out", **options | {"repeats": 3, "seed": 1})


def test_the_command(tmp_path, capsys):
    """A table, a CSV file and a picture, whose numbers are those of `distances`."""
    threads = torch.get_num_threads()
    out = tmp_path / "out"
    assert cli.main(["distances", "--variables", "3", "--sizes", "500,20", "--repeats", "2", "--truth", "FVSBN", "--out", str(out)]) == 0
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert (out / "distances.png").read_bytes().startswith(b"\x89PNG")
    lines = (out / "results.csv").read_text().splitlines()
    assert lines[0] == "rows,model,parameters,floor,open,se"
    again = run_distances("FVSBN", variables=3, sizes=(20, 500), repeats=2, out=tmp_path / "again", say=lambda line: None)
    assert len(lines) == 1 + len(again) == 1 + 2 * 6  # no chain of order 3 over three variables
    with open(out / "results.csv") as file:
        kept = {(line["model"], int(line["rows"])): tuple(float(line[key]) for key in ("floor", "open", "se")) for line in csv.DictReader(file)}
    assert kept == {(d.model, d.rows): (d.floor, d.open, d.error) for d in again}
    for axis in draw(again).axes:
        drawn = [float(segment[1, 1] - segment[0, 1]) / 2 for bars in axis.containers for segment in bars[2][0].get_segments()]
        assert drawn == pytest.approx([d.error for d in again])
    fvsbn = next(d for d in again if d.model == "FVSBN" and d.rows == 500)
    assert fvsbn.floor == pytest.approx(0, abs=1e-6)
    assert f"{fvsbn.open:.4f} ±{fvsbn.error:.4f}" in said
    assert said.count("*") == 3  # the nearest at each number of rows, and the line that says so
    assert cli.main(["distances", "--truth", "GAN"]) == 2
    assert cli.main(["distances", "--sizes", "a"]) == 2
    assert "sizes must be whole numbers" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["distances", "--out", str(tmp_path / "file")]) == 2
