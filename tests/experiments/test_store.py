import json

import pytest

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
