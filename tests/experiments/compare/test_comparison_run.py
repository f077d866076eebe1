"""The compare command: a CSV in, a table, a CSV and a picture out; it resumes, and refuses by name."""

import json
import math

import numpy as np
import pytest
import torch

from pyro_ar.cli import app as cli
from pyro_ar.experiments.compare.report import run_compare, summarise
from pyro_ar.experiments.compare.run import MODELS, NEURAL, Plan, estimate_seconds
from pyro_ar.experiments.states import load_split
from pyro_ar.tables import FullTable, FullyIndependent, MarkovChain

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")  # Lightning's
FEW = ("independent", "Markov chain 1", "full table")


@pytest.fixture
def csv(tmp_path):
    torch.manual_seed(0)
    x = MarkovChain(torch.zeros(2), 1.5 * torch.eye(2).expand(4, 2, 2)).sample((300,)).int().numpy()
    np.savetxt(tmp_path / "data.csv", x, fmt="%d", delimiter=",", header="a,b,c,d,e", comments="")
    return tmp_path / "data.csv"


def test_a_csv_is_compared(csv, tmp_path):
    said = []
    found = run_compare(str(csv), out=tmp_path / "out", sizes=(20, 240), models=(*FEW, "FVSBN"), steps=30, say=said.append)
    assert len(found) == 8
    assert {s.model for s in found} == {*FEW, "FVSBN"}
    best = found[4]
    assert best.rows == 240
    assert best.worse_by == (0.0, 0.0)
    last = {s.model: s for s in found if s.rows == 240}
    assert last["Markov chain 1"].probability > 0.99
    assert last["FVSBN"].log_evidence is None
    assert last["full table"].parameters == 31
    assert sum(s.probability for s in found if s.rows == 20 and s.probability is not None) == pytest.approx(1)
    assert (tmp_path / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 9
    assert "8 of 8 fits to do, at most about" in said[1]
    assert "Markov chain 1" in "\n".join(said)


def test_numbers_can_be_traced(csv, tmp_path):
    """A unit's scores are those of the recipe's joint."""
    found = run_compare(str(csv), out=tmp_path / "out", sizes=(50,), models=FEW, say=lambda line: None)
    name, train, test = load_split(str(csv))
    plan = Plan(name, train, test, (50,), FEW)
    joint = plan.recipe("Markov chain 1", 50).fit(plan.rows(50))
    summary = next(s for s in found if s.model == "Markov chain 1")
    assert summary.nats == pytest.approx(-joint.log_prob(test).mean().item(), abs=1e-5)


def test_an_interrupted_run_goes_on(csv, tmp_path):
    def stop(line):
        if line.startswith("[2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_compare(str(csv), out=tmp_path / "out", sizes=(50,), models=FEW, say=stop)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["units"]
    assert len(kept) == 2
    said = []
    found = run_compare(str(csv), out=tmp_path / "out", sizes=(50,), models=FEW, say=said.append)
    assert "1 of 3 fits to do" in said[1]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["units"][:2] == kept
    assert [s.model for s in found] == [s.model for s in summarise(json.loads((tmp_path / "out" / "results.json").read_text())["units"])]
    with pytest.raises(ValueError, match="other settings"):
        run_compare(str(csv), out=tmp_path / "out", sizes=(60,), models=FEW, say=said.append)


def test_the_command(csv, tmp_path, capsys, monkeypatch):
    threads = torch.get_num_threads()
    out = tmp_path / "out"
    arguments = ["compare", "--data", str(csv), "--out", str(out), "--sizes", "20,200", "--models", "independent,Markov chain 1", "--label", "e"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "data.csv: 240 training rows, 60 test rows, 4 variables of at most 2 states" in said
    assert "4 of 4 fits to do" in said
    assert (out / "curve.png").exists()
    assert cli.main(arguments) == 0
    assert "0 of 4 fits to do" in capsys.readouterr().out
    for wrong, text in ((["--sizes", "a"], "--sizes must be whole numbers"), (["--models", "GAN"], "models must be some of"),
                        (["--data", "nothing"], "no data set or file called 'nothing'"), (["--label", "zz"], "wanted a label column")):
        assert cli.main([*arguments, *wrong]) == 2
        refusal = capsys.readouterr().err
        assert text in refusal
        assert refusal.count("\n") == 1

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_ar.experiments.compare.run._one_unit", stop)
    assert cli.main([*arguments, "--fresh"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    torch.set_num_threads(threads)


def test_the_plan():
    x = torch.randint(0, 2, (1000, 16))
    plan = Plan("coins", x[:900], x[900:])
    assert plan.sizes == (25, 100, 400, 900)
    assert plan.models == MODELS
    assert torch.equal(plan.rows(25), plan.rows(100)[:25])
    assert 0 < estimate_seconds(plan) < math.inf
    assert estimate_seconds(plan, plan.units) == 0
    wide = Plan("wide", torch.randint(0, 2, (50, 40)), torch.randint(0, 2, (9, 40)))
    assert wide.left_out == ("full table",)
    test_only = Plan("three", torch.zeros(50, 2), torch.full((5, 2), 2.0), models=("full table",))
    assert test_only.num_states == (3, 3)  # known from the test rows


def test_bad_input_is_named(tmp_path):
    x = torch.randint(0, 2, (100, 4))
    with pytest.raises(ValueError, match="models must be some of"):
        Plan("d", x, x, models=("GAN",))
    with pytest.raises(ValueError, match="full table does not fit"):
        Plan("d", torch.zeros(50, 40), torch.zeros(5, 40), models=("full table",))
    with pytest.raises(ValueError, match="sizes must be"):
        Plan("d", x, x, sizes=(50, 500))
    with pytest.raises(ValueError, match="2 or more test rows"):
        Plan("d", x, x[:1])
    (tmp_path / "real.csv").write_text("0.5,1\n0.25,2\n")
    with pytest.raises(ValueError, match=r"real\.csv: wanted states"):
        load_split(str(tmp_path / "real.csv"))
    (tmp_path / "few.csv").write_text("0,1\n1,0\n")
    with pytest.raises(ValueError, match="at least 10 training rows"):
        load_split(str(tmp_path / "few.csv"))
    with pytest.raises(FileNotFoundError):
        load_split("no such thing")


def test_classes_of_the_line_up():
    plan = Plan("d", torch.randint(0, 3, (60, 3)), torch.randint(0, 3, (9, 3)))
    kinds = {name: plan.recipe(name, 60) for name in plan.models}
    assert kinds["independent"].joint is FullyIndependent
    assert kinds["full table"].joint is FullTable
    assert kinds["NADE"].make().output.num_states == 3


def test_values_are_recoded_and_said(tmp_path):
    x = torch.stack([torch.arange(60) % 3 - 1, torch.arange(60) % 2, torch.arange(60) % 5 * 1000 + 1], -1)
    np.savetxt(tmp_path / "codes.csv", x.numpy(), fmt="%d", delimiter=",", header="a,b,2020", comments="")
    said = []
    name, train, test = load_split(str(tmp_path / "codes.csv"), say=said.append)
    assert Plan(name, train, test).num_states == (3, 2, 5)
    assert said == ["first line taken for names of the columns: a, b, 2020", "values recoded to 0, 1, ... in their order in 2 columns: a, 2020"]
    said = []
    run_compare(str(tmp_path / "codes.csv"), out=tmp_path / "out", sizes=(40,), models=("independent",), say=said.append)
    assert "recoded" in said[0]
    np.savetxt(tmp_path / "wide.csv", np.arange(600).reshape(300, 2), fmt="%d", delimiter=",")
    with pytest.raises(ValueError, match="at most 256 different values of a variable"):
        load_split(str(tmp_path / "wide.csv"))


def test_columns_are_named_as_in_the_file(tmp_path):
    """Also beside a label; and a column of one value is left out, and said to be."""
    x = torch.stack([torch.full((60,), 7), torch.arange(60) % 3, torch.arange(60) % 2, torch.arange(60) % 3 + 4], -1).numpy()
    np.savetxt(tmp_path / "named.csv", x, fmt="%d", delimiter=",", header="one,label,b,c", comments="")
    np.savetxt(tmp_path / "bare.csv", x, fmt="%d", delimiter=",")
    for file, label, one, c in (("named", "label", "one", "c"), ("named", -3, "one", "c"), ("bare", 1, "0", "3")):
        said = []
        name, train, test = load_split(str(tmp_path / f"{file}.csv"), label=label, say=said.append)
        assert Plan(name, train, test).num_states == (2, 3)
        assert said[-2:] == [f"left out, since they have one value in all rows and so tell no two models apart: {one}",
                             f"values recoded to 0, 1, ... in their order in 1 column: {c}"]
    np.savetxt(tmp_path / "same.csv", np.ones((30, 3)), fmt="%d", delimiter=",")
    with pytest.raises(ValueError, match="every column is constant"):
        load_split(str(tmp_path / "same.csv"))


def test_neural_models_know_what_each_variable_can_be(tmp_path):
    """No probability is lost on states that a variable has not got, and no parameter is counted for them."""
    x = torch.stack([torch.arange(90) % 2, torch.arange(90) // 2 % 5, torch.arange(90) // 10 % 3], -1)
    plan = Plan("d", x, x[:9], steps=5)
    values = torch.cartesian_prod(*map(torch.arange, (2, 5, 3))).float()
    for name in NEURAL:
        recipe = plan.recipe(name, 90)
        joint = recipe.fit(x.float())
        assert joint.num_states == (2, 5, 3)
        assert joint.log_prob(values).exp().sum().item() == pytest.approx(1, abs=1e-5)
        assert recipe.num_parameters(plan.num_states) < NEURAL[name].make(3, 5).num_parameters
    assert plan.recipe("FVSBN", 90).num_parameters(()) == 1 + 4 * (1 + 1) + 2 * (1 + 1 + 4)


def test_messages_of_the_plan(tmp_path, csv):
    x = torch.randint(0, 2, (50, 3))
    with pytest.raises(ValueError, match="Markov chain 3 has more memory than 3 variables can use"):
        Plan("d", x, x, models=("Markov chain 3",))
    assert Plan("d", x, x).left_out == ()
    assert Plan("d", x, x).too_long == ("Markov chain 3",)
    assert Plan("d", x, x).same == ("Markov chain 2",)
    assert "Markov chain 2" not in Plan("d", x, x).models
    assert Plan("d", x, x, models=("Markov chain 2",)).models == ("Markov chain 2",)
    with pytest.raises(ValueError, match="seed must be 0 or more; got -1"):
        Plan("d", x, x, seed=-1)
    with pytest.raises(ValueError, match="seed must be 0 or more; got -1"):
        run_compare(str(csv), out=tmp_path / "out", seed=-1)
