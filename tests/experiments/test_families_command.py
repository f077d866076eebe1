"""`pyro-ar families`: which rows are fitted and scored, what is written, resumption, and refusals."""

import csv
import math

import pytest
import torch

from pyro_ar import data
from pyro_ar.cli import app as cli
from pyro_ar.experiments import families
from pyro_ar.experiments.families import Plan
from pyro_ar.neural.registry import FAMILIES

SMALL = ["--rows", "150", "--steps", "0.03", "--threads", "1"]


@pytest.mark.slow
def test_every_family_that_can_be_shown_is(tmp_path, capsys, monkeypatch):
    """All of them on a few rows, for a step or two; the second time nothing is trained."""
    arguments = ["families", *SMALL, "--levels", "2", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    with open(tmp_path / "families.csv") as file:
        rows = list(csv.DictReader(file))
    wanted = {*families.TABLES, *(name for name, entry in FAMILIES.items() if entry.shown)}
    assert {row["model"] for row in rows} == wanted
    assert all(name in said for name in wanted)
    assert {name for name, entry in FAMILIES.items() if not entry.shown} <= {"MixtureChain"}
    for row in rows:
        assert float(row["bits_per_dim"]) == pytest.approx(float(row["nats"]) / math.log(2) / 64)
        assert int(row["parameters"]) > 0
    assert (tmp_path / "samples-2.png").stat().st_size > 5000
    monkeypatch.setattr(families, "_one_unit", None)
    assert cli.main(arguments) == 0
    assert said == capsys.readouterr().out


def test_scores_are_of_rows_that_no_fit_has_seen(monkeypatch):
    """By hand: an independent joint of smoothed shares cannot be told from the command's, and the families get the training rows alone."""
    digits = data.digits().head(200)
    plan = Plan(digits, ("independent", "FVSBN"), (17,), steps=0.03)
    train, test = plan.rows(17)
    assert (train.shape, test.shape) == ((160, 1, 8, 8), (40, 1, 8, 8))
    both = {tuple(row) for row in torch.cat((train, test)).flatten(1).tolist()}
    assert both == {tuple(row) for row in digits.x.tolist()}
    seen = []
    whole = families.fit
    monkeypatch.setattr(families, "fit", lambda family, x, **options: (seen.append(x), whole(family, x, **options))[1])
    unit = families._one_unit(plan, 17, "FVSBN")
    assert len(seen) == 1
    assert seen[0].equal(train)
    assert unit["nats"] > 0
    assert torch.tensor(unit["samples"]).shape == (12, 64)
    monkeypatch.setattr(families, "table_models", lambda sizes, strengths: {"independent": Recorded(seen)})
    found = families._one_unit(plan, 17, "independent")
    assert seen[1].equal(train.flatten(1))
    nats = torch.arange(40, dtype=torch.float64)
    assert found["nats"] == pytest.approx(nats.mean().item())
    assert found["error"] == pytest.approx(nats.std().item() / math.sqrt(40))


class Recorded:
    num_parameters = 3

    def __init__(self, seen) -> None:
        self.seen = seen

    def with_states(self, sizes):
        return self

    def fit(self, rows):
        self.seen.append(rows)
        return self

    def log_prob(self, x):
        return -torch.arange(len(x), dtype=torch.float64)

    def sample(self, shape):
        return torch.zeros(*shape, 64)


def test_seeds_and_interruption(tmp_path, monkeypatch, capsys):
    arguments = ["families", *SMALL, "--levels", "2", "--models", "FVSBN,NADE"]
    assert cli.main([*arguments, "--out", str(tmp_path / "a")]) == 0
    whole = families._one_unit

    def interrupted(plan, levels, name):
        if name == "NADE":
            raise KeyboardInterrupt
        return whole(plan, levels, name)

    monkeypatch.setattr(families, "_one_unit", interrupted)
    assert cli.main([*arguments, "--out", str(tmp_path / "b")]) == 130
    monkeypatch.setattr(families, "_one_unit", whole)
    assert cli.main([*arguments, "--out", str(tmp_path / "b")]) == 0
    assert cli.main([*arguments, "--out", str(tmp_path / "c"), "--seed", "1"]) == 0

    def nats(folder):
        with open(tmp_path / folder / "families.csv") as file:
            return [row["nats"] for row in csv.DictReader(file)]

    assert nats("a") == nats("b") != nats("c")


@pytest.mark.parametrize(("options", "message"), [
    (["--models", "GAN"], "models must be some of"), (["--levels", "5"], "levels must be 2 or 17"), (["--steps", "0"], "steps must be more than 0"),
    (["--data", "wine"], ""),
])
def test_bad_options_are_refused(options, message, tmp_path, capsys):
    assert cli.main(["families", *options, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
