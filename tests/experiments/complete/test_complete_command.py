"""`pyro-ar complete`: which numbers are written, against the same by hand; resumption, workers and refusals."""

import csv
import io

from pathlib import Path

import numpy as np
import pytest
import torch

from rich.console import Console

from pyro_ar import data
from pyro_ar.cli import app as cli
from pyro_ar.data import Dataset
from pyro_ar.experiments.complete import lineup, report
from pyro_ar.experiments.complete import run as running
from pyro_ar.experiments.complete.lineup import FILLS, MODELS, Fitted, Model, fill
from pyro_ar.experiments.complete.run import Plan, one_unit
from pyro_ar.experiments.complete.spaces import Space, pixels
from pyro_ar.experiments.complete.tasks import TASKS
from pyro_ar.inference import coherence, one_joint
from pyro_ar.tables import FullyIndependent

SMALL = ["--rows", "60", "--completed", "4", "--draws", "4", "--particles", "16", "--steps", "0.02", "--workers", "1"]


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    monkeypatch.setattr(running, "MEASURED", 2)
    monkeypatch.setattr(one_joint, "MOST_STATES", 8)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_all_tasks_on_one_screen(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = ["complete", *SMALL, "--models", "independent,Gaussian,NADE,median,nearest neighbour", "--out", str(out)]
    tasks = ["--task", "inpainting,lower-half,super-resolution"]
    whole = report.picture
    monkeypatch.setattr(report, "picture", lambda plan, task, cells: whole(plan, task, cells) if task == "super-resolution" else None)
    assert cli.main([*arguments, *tasks]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 40
    assert {path.name for path in out.iterdir()} == {"results.json", "results.csv", "report.txt", "super-resolution.png"}
    table = {(row["task"], row["model"]): row for row in rows_of(out / "results.csv")}
    assert len(table) == 15
    kinds = {model: {table[task, model]["kind"] for task in tasks[1].split(",")} for model in ("independent", "Gaussian", "median")}
    assert kinds == {"independent": {"exact"}, "Gaussian": {"at least"}, "median": {"fill"}}
    assert [table[task, "NADE"]["method"] for task in tasks[1].split(",")] == ["sequential Monte Carlo", "prefix", "prefix"]
    assert f"~{float(table['inpainting', 'NADE']['log_p']):.2f}" in said
    assert f"≥{float(table['inpainting', 'Gaussian']['log_p']):.2f}" in said
    assert f"{float(table['inpainting', 'median']['rmse']):.2f}" in said
    text = (out / "report.txt").read_text()
    assert all(f"{name}: hidden is {TASKS[name].label}" in text for name in tasks[1].split(","))
    monkeypatch.setattr(running, "one_unit", None)  # all is there
    monkeypatch.setattr(report, "picture", lambda *of: None)
    said = said.split()
    assert cli.main([*arguments, *tasks]) == 0
    again = capsys.readouterr().out.split()
    assert again[:again.index("Written")] == said[:said.index("Written")]
    assert cli.main([*arguments, *tasks, "--full"]) == 0
    assert text.splitlines()[2][:40] in capsys.readouterr().out
    assert cli.main([*arguments, "--task", "inpainting"]) == 2
    assert "other settings (tasks)" in capsys.readouterr().err


def test_few_tasks_are_told_in_full(tmp_path, capsys):
    assert cli.main(["complete", *SMALL, "--models", "independent,median", "--task", "restoration", "--binary", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "32 variables hidden in each of 4 held-out rows" in " ".join(said.split())
    assert "elimination" in said
    assert "a fill, no joint" in said


@pytest.fixture
def plan():
    return Plan(data.digits().head(200), ("inpainting", "restoration"), ("independent", *FILLS), rows=30, draws=150)


def test_scores_are_of_held_out_rows_given_what_is_seen(plan):
    """Independent cells by hand: shares of the training rows, one hidden cell at a time."""
    cells = one_unit(plan, {"space": "pixels", "model": "independent"})["cells"]
    space = plan.space("pixels")
    joint = MODELS["independent"].fit(space, 0, 1.0).joint
    probs = torch.stack([joint.marginal(torch.arange(64) == i).log_prob(space.test[:30]) for i in range(64)], -1).exp()
    counts = torch.stack([(space.train == k).sum(0) for k in range(17)], -1)
    best = min(lineup.PSEUDOCOUNTS, key=lambda p: (((counts + p) / (len(space.train) + 17 * p)).gather(-1, space.test[:30].T.long()).T - probs).abs().max())
    by_hand = ((counts + best) / (len(space.train) + 17 * best)).gather(-1, space.test[:30].T.long()).T.double()
    for task, cell in cells.items():
        hidden = ~TASKS[task].visible(space, 30, 0)
        each = torch.where(hidden, by_hand.log(), 0).sum(-1) / hidden.sum(-1)
        assert cell["log_p"] == pytest.approx(each.mean().item(), abs=1e-5)
        assert cell["error"] == pytest.approx(each.std().item() / 30**0.5, abs=1e-5)
        assert cell["estimate_error"] == 0
        mean = (torch.arange(17) * ((counts + best) / (len(space.train) + 17 * best))).sum(-1).expand(30, 64)
        rmse = (mean - space.test[:30])[hidden].square().mean().sqrt().item()
        assert cell["rmse"] == pytest.approx(rmse, rel=0.03)  # the mean of 150 draws adds about 1/300
        assert np.array(cell["draws"]).shape == (4, 3, 8, 8)
        seen = ~hidden[:3].reshape(3, 8, 8).numpy()
        assert (np.array(cell["draws"])[:, seen] == space.test[:3].reshape(3, 8, 8).numpy()[seen]).all()
        assert (np.array(cell["deviation"]).reshape(3, 8, 8)[seen] == 0).all()


def test_coherence_of_any_order_families_is_told(monkeypatch):
    """The same numbers from the family itself, which is recorded as it is fitted."""
    plan = Plan(data.digits(binary=True).head(100), ("inpainting", "lower-half", "upper-half"), ("OrderlessNADE", "OrderlessNADE x4", "independent"), rows=3,
                draws=4, steps=0.02)
    made = []
    whole = MODELS["OrderlessNADE"]
    monkeypatch.setitem(lineup.MODELS, "OrderlessNADE", Model(lambda *of: made.append(whole.fit(*of)) or made[-1]))
    units = [one_unit(plan, {"space": space, "model": model}) for space, model in plan.units]
    assert ["coherence" in unit for unit in units] == [False, True, False]
    wanted = coherence(made[0].any_order, plan.space("pixels").test[:2].reshape(-1, 1, 8, 8), num_orders=32, averaged=(1, 4, 16),
                       generator=torch.Generator().manual_seed(0))
    found = units[1]["coherence"]
    assert found["spread"] == pytest.approx(list(wanted.spread.values()))
    assert found["gap"] == pytest.approx(list(wanted.gap.values()))
    assert found["bias"] == pytest.approx(list(wanted.bias.values()))
    assert found["log_prob"] == pytest.approx(list(wanted.log_prob.values()))
    assert (found["hidden"], found["rows"]) == (3, 2)
    screen = Console(width=150, file=io.StringIO())
    screen.print(report.screen(plan, units, [Path("out/report.txt")]), report.tables(plan, units))
    said = screen.file.getvalue()
    assert f"spreads by {wanted.spread[1]:.2f} nats over orders, by {wanted.spread[16]:.2f} averaged over 16" in " ".join(said.split())
    assert f"{wanted.gap[4]:.4f}" in said
    assert f"{wanted.bias[16]:.4f}" in said


def test_plain_fills_by_loops(plan):
    space = plan.space("pixels")
    x = space.test[:4]
    seen = TASKS["restoration"].visible(space, 4, 0)
    near, middle = fill("nearest neighbour", space, x, seen), fill("median", space, x, seen)
    for i in range(4):
        distances = [((row - x[i])[seen[i]] ** 2).sum().item() for row in space.train]
        assert near[i].equal(torch.where(seen[i], x[i], space.train[int(np.argmin(distances))]))
        assert middle[i][seen[i]].equal(x[i][seen[i]])
        assert middle[i][~seen[i]].numpy() == pytest.approx(np.quantile(space.train.numpy(), 0.5, axis=0, method="lower")[~seen[i].numpy()])
    cell = one_unit(plan, {"space": "pixels", "model": "median"})["cells"]["inpainting"]
    inside = space.test[:30].reshape(-1, 8, 8)[:, 2:6, 2:6] - space.train.median(0).values.reshape(8, 8)[2:6, 2:6]
    assert cell["rmse"] == pytest.approx(inside.square().mean().sqrt().item())
    assert cell["mae"] == pytest.approx(inside.abs().mean().item())


def test_no_fit_sees_a_held_out_row(plan, monkeypatch):
    seen = []

    def recorded(space, seed, steps):
        seen.append(space)
        return Fitted(FullyIndependent.from_data(space.train, num_states=17), 1)

    monkeypatch.setitem(lineup.MODELS, "independent", Model(recorded))
    one_unit(plan, {"space": "pixels", "model": "independent"})
    assert seen[0] is plan.space("pixels")
    for name in ("independent", "Chow-Liu tree", "Gaussian", "Gaussian mixture", "latent tree"):
        space = plan.space("pixels")
        other = Space(space.name, space.train, 16 - space.test, space.num_states, space.event_shape, space.levels)
        fitted = [MODELS[name].fit(s, 0, 0.1).joint for s in (space, other)]
        tensors = [getattr(joint, "joint", joint).tensors for joint in fitted]
        assert all(tensors[0][key].equal(tensors[1][key]) for key in tensors[0])


@pytest.mark.parametrize("name", [name for name in MODELS if "x4" not in name])
def test_every_usual_model_fits_its_spaces(name):
    """Shapes alone: images of 6x6, whose blocks are 3x3."""
    rows = Dataset("small", torch.randint(0, 3, (40, 36), generator=torch.Generator().manual_seed(0)).float(), None, 3, (6, 6))
    plan = Plan(rows, ("restoration", "super-resolution"), (name,), rows=3, draws=4, particles=8, steps=0.02)
    for space, _ in plan.units:
        unit = one_unit(plan, {"space": space, "model": name})
        for cell in unit["cells"].values():
            assert cell.get("log_p", cell) is not None
            assert "reason" not in cell


def test_seeds_and_interruption(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "picture", lambda *of: None)
    arguments = ["complete", *SMALL, "--task", "inpainting", "--models", "independent,NADE"]
    assert cli.main([*arguments, "--out", str(tmp_path / "a")]) == 0
    whole = running.one_unit

    def interrupted(plan, key):
        if key["model"] == "NADE":
            raise KeyboardInterrupt
        return whole(plan, key)

    monkeypatch.setattr(running, "one_unit", interrupted)
    assert cli.main([*arguments, "--out", str(tmp_path / "b")]) == 130
    assert "1 of 2 units are done" in capsys.readouterr().err
    monkeypatch.setattr(running, "one_unit", whole)
    assert cli.main([*arguments, "--out", str(tmp_path / "b")]) == 0
    assert cli.main([*arguments, "--out", str(tmp_path / "c"), "--seed", "1"]) == 0
    scores = {folder: [row["log_p"] for row in rows_of(tmp_path / folder / "results.csv")] for folder in "abc"}
    assert scores["a"] == scores["b"] != scores["c"]
    assert cli.main([*arguments, "--models", "independent,NADE,median", "--out", str(tmp_path / "a")]) == 0  # models may be added
    assert len(rows_of(tmp_path / "a" / "results.csv")) == 3


def test_what_settings_are_chosen_by_is_not_fitted_to(plan, monkeypatch):
    """The rows that a family stops by are those that tables choose by."""
    found = {}
    whole = lineup.fit
    monkeypatch.setattr(lineup, "fit", lambda family, x, **options: (found.update(x=x, **options), whole(family, x, **options))[1])
    space = plan.space("pixels")
    MODELS["NADE"].fit(space, 0, 0.02)
    train, held = lineup._inner(space)
    assert found["x"].flatten(1).equal(train)
    assert found["held_out"][0].flatten(1).equal(held)
    assert len(held) == len(space.train) // 10
    assert torch.cat((held, train)).equal(space.train)


def test_fills_stay_within_the_levels(monkeypatch):
    """Differences that lead out of the levels are cut where they are drawn, for errors and pictures."""
    def wild(space, seed, steps):
        return Fitted(FullyIndependent(torch.zeros(space.train.shape[1], space.num_states)), 1)

    plan = Plan(data.digits().head(100), ("super-resolution",), ("independent",), rows=3, draws=20)
    monkeypatch.setitem(lineup.MODELS, "independent", Model(wild))
    draws = np.array(one_unit(plan, {"space": "blocks", "model": "independent"})["cells"]["super-resolution"]["draws"])
    assert draws.min() == 0
    assert draws.max() == 16


@pytest.mark.slow
def test_workers_change_nothing(tmp_path):
    arguments = ["complete", *SMALL, "--task", "inpainting", "--models", "independent,NADE"]
    for workers in ("1", "2"):
        assert cli.main([*arguments, "--workers", workers, "--out", str(tmp_path / workers)]) == 0
    scores = [[row["log_p"] for row in rows_of(tmp_path / workers / "results.csv")] for workers in ("1", "2")]
    assert scores[0] == scores[1]


def test_what_cannot_be_fitted_or_answered_says_why(monkeypatch):
    def broken(space, seed, steps):
        raise ValueError("it is broken")

    plan = Plan(data.digits().head(100), ("inpainting",), ("independent", "median"), rows=3, draws=4)
    monkeypatch.setitem(lineup.MODELS, "independent", Model(broken))
    units = [one_unit(plan, {"space": space, "model": model}) for space, model in plan.units]
    assert units[0]["cells"]["inpainting"] == {"reason": "it could not be fitted: it is broken"}
    cells = report.cells_of(units, "inpainting")
    assert list(cells) == ["median", "independent"]
    assert report.csv_rows(plan, units)[1]["reason"] == "it could not be fitted: it is broken"


def test_what_a_model_holds_for_impossible(monkeypatch):
    """Hidden values of probability zero are minus infinity; visible ones leave nothing to say."""
    plan = Plan(data.digits().head(100), ("inpainting", "uncropping"), ("independent", "Gaussian"), rows=3, draws=4)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True

    def blank_inside(space, seed, steps):
        logits = torch.zeros(64, 17)
        logits[inside.flatten(), 1:] = -torch.inf
        return Fitted(FullyIndependent(logits), 1)

    monkeypatch.setitem(lineup.MODELS, "independent", Model(blank_inside))
    units = [one_unit(plan, {"space": space, "model": model}) for space, model in plan.units]
    assert units[0]["cells"]["inpainting"]["log_p"] is None
    assert "positive probability" in units[0]["cells"]["uncropping"]["reason"]
    assert list(report.cells_of(units, "inpainting")) == ["Gaussian", "independent"]
    assert "-inf" in [report._log_p(cell) for cell in report.cells_of(units, "inpainting").values()]


@pytest.mark.parametrize(("options", "message"), [
    (["--task", "magic"], "task must be one of"), (["--models", "GAN"], "model must be one of"), (["--completed", "1"], "rows must be 2 or more"),
    (["--draws", "3"], "draws must be 4 or more"), (["--particles", "1"], "particles must be 2 or more"), (["--steps", "0"], "steps must be more than 0"),
    (["--rows", "10"], "20 rows or more"),
])
def test_bad_options_are_refused(options, message, tmp_path, capsys):
    assert cli.main(["complete", *options, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_images_of_odd_sides_are_not_coarsened():
    rows = Dataset("odd", torch.randint(0, 2, (30, 15)).float(), None, 2, (3, 5))
    assert "super-resolution" not in (Plan(rows).tasks or ())
    with pytest.raises(ValueError, match="super-resolution wants images of an even"):
        Plan(rows, ("super-resolution",))
    assert pixels(rows, 0.2, 0).event_shape == (1, 3, 5)
