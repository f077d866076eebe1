import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from pyro_ar import data
from pyro_ar.cli import app as cli
from pyro_ar.cli import occlusion as command
from pyro_ar.cli.progress import workers_or_cores
from pyro_ar.experiments.occlusion import lineup
from pyro_ar.experiments.occlusion.plan import Plan

SMALL = ["--rows", "200", "--seeds", "1", "--folds", "2", "--models", "independent,gaussian", "--occlusions", "random-0,random-50,left"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def refused(capsys, *arguments):
    """The one line on standard error."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("pyro-ar: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err + captured.out
    return captured.err


# pyro-ar


def test_help_and_version(capsys):
    assert cli.main([]) == 0
    assert "occlusion" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.count(".") >= 2
    assert cli.main(["occlusion", "--help"]) == 0
    assert "--binary" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nope"], ["--nope"], ["occlusion", "--nope"], ["occlusion", "--folds", "x"], ["parameters", "--states"]])
def test_wrong_command_lines(capsys, arguments):
    refused(capsys, *arguments)


# pyro-ar parameters


def test_parameters_table(capsys):
    assert cli.main(["parameters", "--shape", "28x28", "--states", "2", "--classes", "10"]) == 0
    out = capsys.readouterr().out
    assert "n = 784 variables (28x28), K = 2 states, C = 10 classes" in out
    for text in ("2^784 - 1 (~10^236)", "307,720", "1,567", "3,085,049", "784 x 2^784", "r c 2^(h w)"):
        assert text in out
    assert max(map(len, out.splitlines())) <= 80


def test_parameters_json(capsys):
    assert cli.main(["parameters", "--shape", "3", "--states", "256", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["full table"]["value"] == 256**3 - 1
    assert cli.main(["parameters", "--shape", "1000000x1000000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["value"] is None


@pytest.mark.parametrize(("arguments", "said"), [
    (["--shape", "28*28"], "shape must be positive numbers such as 28x28, 3x32x32 or 784; got '28*28'"),
    (["--shape", "0"], "positive"), (["--states", "1"], "2 states"), (["--classes", "1"], "2 classes"),
])
def test_parameters_bad_input(capsys, arguments, said):
    assert said in refused(capsys, "parameters", *arguments)


# pyro-ar occlusion


def test_occlusion_run_and_rerun(capsys, tmp_path):
    out = tmp_path / "results"
    assert cli.main(["occlusion", *SMALL, "--out", str(out)]) == 0
    first = capsys.readouterr().out
    assert "2 models, 2 splits, 3 occlusions" in first
    assert "Accuracy, %" in first
    names = sorted(path.name for path in out.iterdir())
    assert names == ["examples.png", "levels.png", "reliability.png", "report.txt", "results.csv", "results.json", "shapes.png", "summary.json"]
    assert cli.main(["occlusion", *SMALL, "--out", str(out)]) == 0
    again = capsys.readouterr().out
    assert len(first.splitlines()) <= 40
    assert "Calibration error" not in first
    assert "Most accurate: Gaussian" in first
    assert cli.main(["occlusion", *SMALL, "--out", str(out), "--full"]) == 0
    assert "Calibration error" in capsys.readouterr().out
    assert "Calibration error" in (out / "report.txt").read_text()
    assert "4 of 4 units were there from an earlier run" in again
    assert "other settings (data" in refused(capsys, "occlusion", *SMALL, "--binary", "--out", str(out))
    binary = ["occlusion", *SMALL, "--occlusions", "random-50", "--binary", "--out", str(out)]
    assert cli.main([*binary, "--fresh"]) == 0
    assert "digits (binary): 200 rows of 64 variables (8x8), 2 states" in capsys.readouterr().out
    (out / "results.json").write_text((out / "results.json").read_text()[:-30])
    assert "is torn" in refused(capsys, *binary)


def test_a_table_of_rows_is_no_image_and_hides_no_share_twice(capsys, tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 4)) + np.repeat([[0.0], [2.0]], 30, axis=0)
    file = tmp_path / "table.csv"
    file.write_text("a,b,c,d,kind\n" + "".join(f"{','.join(f'{v:.4f}' for v in row)},{int(i >= 30)}\n" for i, row in enumerate(rows)))
    out = tmp_path / "out"
    assert cli.main(["occlusion", "--data", str(file), "--label", "kind", "--seeds", "1", "--folds", "2", "--models", "Gaussian,logistic (mean)",
                     "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "left out: 90 % at random hides all 4 cells" in said
    assert "of the 4 cells 0, 1, 2, 3 are hidden at random" in said
    assert "2 models, 2 splits, 4 occlusions" in said
    assert len(said.splitlines()) <= 40
    left = [word for text in (said, (out / "report.txt").read_text(), (out / "results.csv").read_text()) for word in ("pixel", "images")
            if word in text.lower()]
    assert left == []


def test_ctrl_c_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    whole = command.run

    def interrupted(plan, results, **options):
        units = whole(plan, results, **options)
        yield next(units)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    assert cli.main(["occlusion", *SMALL, "--out", str(tmp_path)]) == 130
    assert "1 of 4 units are done and kept in" in capsys.readouterr().err
    monkeypatch.setattr(command, "run", whole)
    assert cli.main(["occlusion", *SMALL, "--out", str(tmp_path)]) == 0
    assert "1 of 4 units were there" in capsys.readouterr().out


def _hears_ctrl_c() -> None:
    """A job in the background of a shell inherits deaf ears, and so would the process under test."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("kill", "workers"), [
    pytest.param(signal.SIGINT, "1", id="ctrl-c", marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, "1", id="kill"),
    pytest.param(signal.SIGINT, "2", id="ctrl-c with workers", marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, "2", id="kill with workers", marks=pytest.mark.slow),
])
def test_a_killed_process_goes_on(tmp_path, kill, workers):
    command = [sys.executable, "-m", "pyro_ar.cli.app", "occlusion", "--models", "independent,Chow-Liu tree", "--seeds", "1",
               "--rows", "600", "--folds", "3", "--occlusions", "random-90", "--out", str(tmp_path), "--workers", workers]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    file = tmp_path / "results.json"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                          preexec_fn=_hears_ctrl_c) as process:  # noqa: PLW1509 - it only resets a signal
        for _ in range(1200):
            if file.exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(kill)
        error = process.communicate(timeout=60)[1]  # would wait for workers that outlive their parent: they hold the pipe
    if kill == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from there" in error
        assert "Traceback" not in error
    done = json.loads(file.read_text())["units"]
    assert 1 <= len(done) < 6
    assert cli.main([*command[3:], "--workers", "1"]) == 0
    units = json.loads(file.read_text())["units"]
    assert len(units) == 6
    assert units[:len(done)] == done


def test_workers_are_worth_their_start(monkeypatch):
    small = Plan(data.digits())
    assert command._workers(small, 4) == command._workers(small, 0) == 1
    assert 1 <= command._workers(small, 100) <= 4
    monkeypatch.setattr(lineup, "LARGE", 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert (command._workers(small, 3), command._workers(small, 1), command._workers(small, 0)) == (2, 1, 1)


def write_idx(path, values, kind=8):
    values = np.asarray(values, np.uint8)
    path.write_bytes(gzip.compress(bytes([0, 0, kind, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes(), mtime=0))


def test_an_official_test_part_is_used(capsys, tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    digits = data.digits()
    for start, rows in (("train", slice(0, 200)), ("t10k", slice(200, 300))):
        images = torch.nn.functional.interpolate(digits.x[rows].reshape(-1, 1, 8, 8) * 15, size=(28, 28)).squeeze(1)
        write_idx(tmp_path / "mnist" / f"{start}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / "mnist" / f"{start}-labels-idx1-ubyte.gz", digits.y[rows])
    monkeypatch.setenv("PYRO_AR_DATA", str(tmp_path))
    out = tmp_path / "out"
    arguments = ["occlusion", "--data", "mnist", "--models", "kernel density,independent", "--occlusions", "random-0,random-80", "--out", str(out)]
    assert cli.main([*arguments, "--reference", "independent"]) == 0
    said = capsys.readouterr().out
    assert "mnist: 300 rows of 784 variables (28x28), 256 states, 10 classes" in said
    assert "the last 100 rows are the test part" in said
    assert "binomial" in said
    units = {unit["model"]: unit for unit in json.loads((out / "results.json").read_text())["units"]}
    assert {model: unit["rows"] for model, unit in units.items()} == {"kernel density": 100, "independent": 100}
    assert units["kernel density"]["cells"]["random-80"]["accuracy"] > units["independent"]["cells"]["random-80"]["accuracy"]
    assert cli.main([*arguments, "--rows", "60", "--folds", "2", "--fresh"]) == 0
    assert "mnist train: 60 rows" in capsys.readouterr().out


def test_the_default_says_what_it_leaves_out(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_work", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["occlusion", "--out", str(tmp_path / "a")]) == 130
    note = "without latent trees, MDA + pattern net, MDA chain, OrderlessNADE (4 orders), pattern net: they take longer; --models all runs them too"
    assert note in capsys.readouterr().out
    assert cli.main(["occlusion", "--models", "all", "--out", str(tmp_path / "b")]) == 130
    said = capsys.readouterr()
    wanted = lineup.fitting(data.digits())
    assert f"{len(wanted)} models, 10 splits" in said.out
    assert {name for name in lineup.MODELS if name not in wanted} == {*lineup.ESTIMATED, *(m for m in lineup.TABLES_WITH_HOLES if m not in wanted)}
    assert "without" not in said.out
    assert "--reference must be one of independent" in refused(capsys, "occlusion", "--reference", "nope", "--out", str(tmp_path / "c"))


def test_data_from_files(capsys, tmp_path, monkeypatch):
    digits = data.digits().head(120)
    lines = [",".join(map(str, [*row.int().tolist(), int(label)])) for row, label in zip(digits.x, digits.y, strict=True)]
    (tmp_path / "digits.csv").write_text("\n".join(lines))
    arguments = ["occlusion", "--data", str(tmp_path / "digits.csv"), "--out", str(tmp_path / "out"), "--folds", "2", "--seeds", "1"]
    assert "has no labels; say which column holds them with --label" in refused(capsys, *arguments)
    assert cli.main([*arguments, "--label", "-1", "--models", "independent,Gaussian"]) == 0
    assert "120 rows of 64 variables (no image), 17 states, 10 classes" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "said"), [
    (["--data", "nope"], "no data set or file called 'nope'"),
    (["--data", "mnist"], "PYRO_AR_DATA names, which is not set"),
    (["--data", "dna"], "several sets called dna"),
    (["--models", "nope"], "model must be one of independent"),
    (["--occlusions", "nope"], "occlusion must be one of random-0"),
    (["--seeds", "a"], "--seeds must be whole numbers, such as 1,2,3; got 'a'"),
    (["--seeds", ""], "--seeds must be whole numbers"),
    (["--folds", "1"], "folds must be 2 or more"),
    (["--folds", "1000"], "1000 folds want 1000 rows or more of every class"),
    (["--rows", "0"], "rows must be 1 or more"),
    (["--rows", "1"], "two classes or more"),
    (["--threads", "0"], "threads"),
    (["--workers", "0"], "workers"),
])
def test_occlusion_bad_input(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.delenv("PYRO_AR_DATA", raising=False)
    assert said in refused(capsys, "occlusion", "--out", str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


def test_torn_data_and_bad_folders(capsys, tmp_path):
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    assert "torn.npz" in refused(capsys, "occlusion", "--data", str(tmp_path / "torn.npz"), "--out", str(tmp_path / "out"))
    (tmp_path / "file").write_text("")
    assert "results go into a folder" in refused(capsys, "occlusion", *SMALL, "--out", str(tmp_path / "file"))


def test_workers_are_those_asked_for_or_one_per_core_and_four_at_most(monkeypatch):
    for cores, wanted in ((9, 4), (3, 3)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert workers_or_cores(None) == wanted
        assert workers_or_cores(7) == 7
