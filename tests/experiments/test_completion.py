"""`pyro-ar impute`: what is written, in which words, and what is refused."""

import csv

import numpy as np
import pytest

from pyro_ar.cli import app as cli


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    lines = [["size", "colour", "count"]]
    for i in range(80):
        g = i % 2
        lines.append([f"{5 * g + rng.normal(0, 0.5):.3f}", "red" if g else "blue", str(10 * g + int(rng.integers(0, 3)))])
    for r, c, word in [(3, 0, ""), (4, 1, "NA"), (9, 2, "?"), (10, 0, "nan"), (10, 1, ""), (31, 1, "null")]:
        lines[r][c] = word
    path = tmp_path / "table.csv"
    with open(path, "w", newline="") as out:
        csv.writer(out).writerows(lines)
    return path, lines


def test_holes_are_filled_and_all_else_is_as_it_was(file, tmp_path, capsys):
    path, lines = file
    assert cli.main(["impute", str(path), "--out", str(tmp_path / "out"), "--tables", "2", "--joint", "mixture of 4"]) == 0
    said = capsys.readouterr().out
    assert "joints: 10 of 'mixture of 4'" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["completed-1.csv", "completed-2.csv", "completed.csv", "report.csv"]
    holes = {(3, 0), (4, 1), (9, 2), (10, 0), (10, 1), (31, 1)}
    for name in ("completed.csv", "completed-1.csv", "completed-2.csv"):
        found = rows_of(tmp_path / "out" / name)
        assert len(found) == len(lines)
        for r, line in enumerate(lines):
            for c, cell in enumerate(line):
                assert (r, c) in holes or found[r][c] == cell
        assert found[4][1] == "red"
        assert found[31][1] == "blue"
        assert abs(float(found[3][0])) < 3
        assert abs(float(found[10][0]) - 5) < 3
    assert rows_of(tmp_path / "out" / "completed-1.csv") != rows_of(tmp_path / "out" / "completed-2.csv")
    assert rows_of(tmp_path / "out" / "completed-1.csv")[9][2].isdecimal()  # a draw of a count is one
    report = rows_of(tmp_path / "out" / "report.csv")
    assert [row[:3] for row in report[1:]] == [["size", "real", "2"], ["colour", "binary", "3"], ["count", "count", "1"]]
    assert all(0 <= float(row[3]) < 0.5 for row in report[1:])


def test_the_choice_is_told_and_equal_runs_are_equal(file, tmp_path, capsys):
    path, _ = file
    for folder in ("a", "b"):
        assert cli.main(["impute", str(path), "--out", str(tmp_path / folder)]) == 0
    said = capsys.readouterr().out
    assert "by itself, minus the CRPS of cells hidden on purpose: " in said.replace("\n", " ")
    assert rows_of(tmp_path / "a" / "completed.csv") == rows_of(tmp_path / "b" / "completed.csv")


@pytest.mark.parametrize(("text", "options", "message"), [
    ("a,b\n1,2\n3,4\n", [], "no cell is empty"),
    ("a,b\n1,\n3,\n", [], "column b is all missing"),
    ("a,b\n1,x\n2,2\n,3\n", [], "column b must hold numbers or words"),
    ("a,b\n1,2\n3\n", [], "wanted 2 columns in line 3"),
    ("a,b\n1,2\n,4\n5,7\n", ["--joint", "magic"], "joint must be one of"),
    ("a,b\n1,2\n,4\n5,7\n", ["--kinds", "a"], "--kinds must be pairs"),
    ("a,b\n1,2\n,4\n5,7\n", ["--kinds", "c=real"], "kinds must be of columns there are"),
])
def test_bad_tables_are_refused_in_one_line(text, options, message, tmp_path, capsys):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert cli.main(["impute", str(path), "--out", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_codes_that_are_categories_can_be_told(tmp_path):
    path = tmp_path / "codes.csv"
    path.write_text("a,b\n" + "1.5,7\n2.5,x\n" * 20 + ",x\n")
    assert cli.main(["impute", str(path), "--out", str(tmp_path / "out"), "--kinds", "b=categorical", "--joint", "mixture of 4"]) == 0
    assert rows_of(tmp_path / "out" / "completed.csv")[-1][1] == "x"
