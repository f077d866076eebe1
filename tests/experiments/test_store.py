import json

import numpy as np
import pytest
import torch

from pyro_ar import provenance
from pyro_ar.cli import app as cli
from pyro_ar.experiments.store import Results, write_atomically, write_csv

SETTINGS = {"seeds": (1, 2), "models": {"a": "A()"}}
UNIT = {"model": "a", "seed": 1, "cells": {"left": {"accuracy": 0.5}}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "results.json"


def test_units_come_back(path):
    results = Results.open(path, SETTINGS)
    assert not path.exists()
    results.add(UNIT)
    again = Results.open(path, SETTINGS)
    assert again.units == [UNIT]
    assert again.find(model="a", seed=1) == UNIT
    assert again.find(model="a", seed=2) is None


def test_the_file_is_whole_at_every_moment(path, monkeypatch):
    results = Results.open(path, SETTINGS)
    results.add(UNIT)
    before = path.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.add(UNIT | {"seed": 2})
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]  # nothing half-written is left


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', '{"format": 2, "settings": {}, "units": []}',
                                     '{"format": 1, "settings": {}, "units": [3]}', "\xff"])
def test_torn_files_are_refused_and_kept(path, content):
    path.parent.mkdir()
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"results\.json is torn, or holds no results of this program; .*--fresh"):
        Results.open(path, SETTINGS)
    assert path.read_text("latin-1") == content
    assert Results.open(path, SETTINGS, fresh=True).units == []


def test_other_settings_are_refused_by_name(path):
    Results.open(path, SETTINGS).add(UNIT)
    with pytest.raises(ValueError, match=r"results of other settings \(folds, seeds\)"):
        Results.open(path, SETTINGS | {"seeds": [1], "folds": 5})
    assert Results.open(path, SETTINGS).units == [UNIT]


def test_results_of_other_code_are_refused_unless_told(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pyro_ar.experiments.store.code_digest", lambda: "0123456789abcdef")
        Results.open(path, SETTINGS).add(UNIT)
    before = path.read_text()
    with pytest.raises(ValueError, match=r"other code of this library wrote \(0123456789abcdef; this is [0-9a-f]{16}\); .*--fresh .*--keep-old-results"):
        Results.open(path, SETTINGS)
    assert path.read_text() == before
    kept = Results.open(path, SETTINGS, keep_old_results=True)
    assert "written by other code of this library (0123456789abcdef)" in kept.note
    assert "\n" not in kept.note
    kept.add(UNIT | {"seed": 2})
    with pytest.raises(ValueError, match="0123456789abcdef"):  # what is mixed stays mixed
        Results.open(path, SETTINGS)
    assert Results.open(path, SETTINGS, fresh=True).note == ""
    with pytest.raises(ValueError, match="other settings"):
        Results.open(path, {}, keep_old_results=True)


def test_results_from_before_digests_are_of_unknown_code(path):
    path.parent.mkdir()
    path.write_text(json.dumps({"format": 1, "settings": {}, "units": [UNIT]}))
    with pytest.raises(ValueError, match=r"other code of this library wrote \(unknown;"):
        Results.open(path, {})
    path.write_text(json.dumps({"format": 1, "settings": {}, "units": []}))
    Results.open(path, {})


@pytest.mark.parametrize("change", ["edited", "added", "removed", "renamed", "line ends"])
def test_the_digest_is_of_the_source(tmp_path, monkeypatch, change):
    """Of every module and its name, and of nothing else."""
    package = tmp_path / "pyro_ar"
    (package / "deep").mkdir(parents=True)
    (package / "provenance.py").write_text("a = 1\n")
    (package / "deep" / "b.py").write_text("b = 2\n")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    digest = provenance.code_digest.__wrapped__
    before = digest()
    (package / "notes.txt").write_text("no code")
    assert digest() == before
    if change == "edited":
        (package / "deep" / "b.py").write_text("b = 3\n")
    elif change == "added":
        (package / "c.py").write_text("")
    elif change == "removed":
        (package / "deep" / "b.py").unlink()
    elif change == "renamed":
        (package / "deep" / "b.py").rename(package / "deep" / "c.py")
    else:
        (package / "deep" / "b.py").write_bytes(b"b = 2\r\n")
    assert (digest() == before) == (change == "line ends")


@pytest.mark.parametrize("command", [
    ["occlusion", "--rows", "60", "--seeds", "1", "--folds", "2", "--models", "Gaussian", "--occlusions", "random-50", "--workers", "1"],
    ["compare", "--sizes", "20", "--models", "independent,full table"], ["distances", "--variables", "2", "--sizes", "20", "--repeats", "2"],
], ids=lambda c: c[0])
def test_every_command_refuses_results_of_other_code(command, tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    np.savetxt(tmp_path / "data.csv", np.arange(180).reshape(60, 3) % 7 % 2, fmt="%d", delimiter=",", header="a,b,c", comments="")
    data = ["--data", str(tmp_path / "data.csv")] if command[0] == "compare" else []
    arguments = [command[0], *data, *command[1:], "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr("pyro_ar.experiments.store.code_digest", lambda: "0123456789abcdef")
        assert cli.main(arguments) == 0
    capsys.readouterr()
    assert cli.main(arguments) == 2
    refusal = capsys.readouterr().err
    assert "other code of this library wrote (0123456789abcdef" in refusal
    assert "--keep-old-results" in refusal
    assert cli.main([*arguments, "--keep-old-results"]) == 0
    said = capsys.readouterr().out
    assert said.count("written by other code of this library (0123456789abcdef) and are kept") == 1
    assert cli.main([*arguments, "--fresh"]) == 0
    assert cli.main(arguments) == 0
    assert "other code" not in capsys.readouterr().out
    torch.set_num_threads(threads)


def test_units_must_be_json(path):
    with pytest.raises(ValueError, match="JSON"):
        Results(path, SETTINGS, [UNIT | {"score": float("nan")}]).save()


def test_the_folder_must_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="results go into a folder"):
        Results.open(tmp_path / "file" / "results.json", SETTINGS)


def test_csv(tmp_path):
    write_csv(tmp_path / "t.csv", [{"a": 1, "b": None}, {"a": "x, y", "b": 2.5}])
    assert (tmp_path / "t.csv").read_text() == 'a,b\n1,\n"x, y",2.5\n'


def test_others_may_read_results(tmp_path):
    write_atomically(tmp_path / "x", json.dumps({}))
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644
