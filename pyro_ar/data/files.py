r"""Readers of files: IDX, `.amat`, CSV, `.npz` and MATLAB; a torn file is an error that says so."""

import csv
import gzip
import io
import math
import os
import warnings
import zipfile
import zlib

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pyro_ar.checks import require

__all__ = ["load_amat", "load_csv", "load_idx", "load_mat", "load_npz", "read_csv"]

Arrays = tuple[np.ndarray, np.ndarray | None]


def load_idx(path: str | os.PathLike) -> np.ndarray:
    """The array of an IDX file, also compressed.

    Raises:
        ValueError: The file is torn, or no IDX file.

    Source:
        Y. LeCun, C. Cortes, C. Burges, *The MNIST database*, "File formats".
    """
    content = _bytes(path)
    types = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
    good = len(content) >= 4 and content[:2] == b"\0\0" and content[2] in types and content[3] >= 1
    require(good, f"{path}: wanted an IDX file, which starts with 00 00, a type and a rank", content[:4].hex(" "))
    rank, dtype = content[3], np.dtype(types[content[2]])
    head = 4 + 4 * rank
    require(len(content) >= head, f"{path}: torn IDX file, wanted {head} bytes of header", len(content))
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", rank, 4))
    wanted = head + math.prod(shape) * dtype.itemsize
    require(len(content) == wanted, f"{path}: torn IDX file, wanted {wanted} bytes for shape {shape}", len(content))
    return np.frombuffer(content, dtype, offset=head).reshape(shape).astype(dtype.newbyteorder("="))


def load_amat(path: str | os.PathLike, label: str | int | None = None) -> Arrays:
    """Rows and labels of an `.amat` file: numbers separated by blanks, labels in a column if told."""
    return _columns(path, [line.split() for line in _text(path).splitlines() if line.strip()], None, label)


def load_csv(path: str | os.PathLike, label: str | int | None = None) -> Arrays:
    """Rows and labels of a table; `read_csv` says when the first line is taken for names.

    A column without any number holds categories: they become 0, 1, ... in alphabetical order.

    Raises:
        ValueError: A column mixes numbers with something else, a cell is empty, a row has another length, or there is no such column.
    """
    names, lines = read_csv(path)
    return _columns(path, _coded(lines), names, label)


def read_csv(path: str | os.PathLike) -> tuple[list[str] | None, list[list[str]]]:
    """Names of the columns, if there are any, and the cells of the other lines.

    The first line holds names if no cell of it is a number; or if one, which is not a usual sign for a missing value, is no number above
    a column of numbers; or if it is 0, 1, 2, ..., as pandas writes it (of two columns: where 0 or 1 does not occur below).
    """
    text = _text(path)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    lines = [[cell.strip() for cell in line] for line in csv.reader(io.StringIO(text), delimiter=delimiter) if line]
    return (lines[0], lines[1:]) if _has_names(lines) else (None, lines)


MISSING = {"", "?", "na", "n/a", "null", "none", "missing"}


def _has_names(lines: list[list[str]]) -> bool:
    if not lines or not any(_is_number(cell) for cell in lines[0]):
        return bool(lines)
    first, rest = lines[0], lines[1:]
    if not rest or any(len(line) != len(first) for line in rest):
        return False
    if first == [str(i) for i in range(len(first))]:
        return len(first) > 2 or any(cell not in column for cell, column in zip(first, zip(*rest, strict=True), strict=True))
    below = zip(*rest, strict=True)
    return any(not _is_number(cell) and cell.lower() not in MISSING and all(map(_is_number, column)) for cell, column in zip(first, below, strict=True))


def load_npz(path: str | os.PathLike, split: str = "train") -> Arrays:
    """Rows and labels of an `.npz` file; nothing in it is run.

    Raises:
        ValueError: The file is torn, or it does not say which array holds the rows.
    """
    try:
        with open(path, "rb") as stream:  # numpy leaves a torn file open if it opened it itself
            file = np.load(stream, allow_pickle=False)
            require(isinstance(file, Mapping), "it holds a single array")
            arrays = {name: file[name] for name in file}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"{path}: wanted an .npz file, it is torn or something else ({_first_line(error)})") from None
    return _pick(path, arrays, split)


def load_mat(path: str | os.PathLike, split: str = "train") -> Arrays:
    """Rows and labels of a MATLAB file up to version 7.

    Raises:
        ValueError: The file is torn, of version 7.3, or it does not say which array holds the rows.
    """
    from scipy.io import loadmat  # slow to import, and only this function needs it

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of variables it cannot read, which are not ours
            file = loadmat(path)
    except NotImplementedError:
        raise ValueError(f"{path}: MATLAB 7.3 files are not read; save it with -v7") from None
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - torn files raise whatever the parser stumbles over
        raise ValueError(f"{path}: wanted a .mat file, it is torn or something else ({_first_line(error)})") from None
    arrays = {name: np.asarray(value) for name, value in file.items()
              if not name.startswith("__") and np.asarray(value).dtype.kind in "biuf"}
    return _pick(path, arrays, split)


def _pick(path: str | os.PathLike, arrays: dict[str, np.ndarray], split: str) -> Arrays:
    """Which of the named arrays are the rows and the labels."""
    lower = {name.lower(): array for name, array in arrays.items()}
    for x, y in ((split, f"{split}_labels"), (f"x_{split}", f"y_{split}"), ("x", "y"), ("data", "labels")):
        if x in lower:
            return lower[x], lower.get(y, lower.get(f"{y}_derived"))
    require(len(arrays) == 1, f"{path}: wanted an array called x or {split}, or a single one",
            ", ".join(arrays) or "none")
    return next(iter(arrays.values())), None


def _columns(path: str | os.PathLike, lines: list[list[str]], names: list[str] | None,
             label: str | int | None) -> Arrays:
    require(len(lines) > 0, f"{path}: wanted rows of numbers, the file is empty")
    width = len(lines[0]) if names is None else len(names)
    for number, line in enumerate(lines, 1 if names is None else 2):
        require(len(line) == width, f"{path}: wanted {width} columns in line {number}", len(line))
        if "" in line:
            at = line.index("")
            require(False, f"{path}: wanted a value in every cell; line {number} has an empty cell in column {at if names is None else names[at]}")
    try:
        table = np.array(lines, dtype=np.float64)
    except ValueError:
        where = next((i, cell) for i, line in enumerate(lines) for cell in line if not _is_number(cell))
        raise ValueError(f"{path}: wanted numbers only; got {where[1]!r} in row {where[0] + 1}") from None
    if label is None:
        return table, None
    column = _column(path, label, names, width)
    return np.delete(table, column, axis=1), table[:, column]


def _coded(lines: list[list[str]]) -> list[list[str]]:
    """Columns of words by the alphabetical numbers of their categories; all else as it is."""
    if len({len(line) for line in lines}) != 1:
        return lines  # refused later, with the line
    columns = [list(column) for column in zip(*lines, strict=True)]
    for i, column in enumerate(columns):
        if all(cell and not _is_number(cell) for cell in column):
            codes = {word: str(code) for code, word in enumerate(sorted(set(column)))}
            columns[i] = [codes[cell] for cell in column]
    return [list(line) for line in zip(*columns, strict=True)]


def _column(path: str | os.PathLike, label: str | int, names: list[str] | None, width: int) -> int:
    if names is not None and str(label) in names:
        return names.index(str(label))
    number = int(label) if str(label).lstrip("-").isdigit() else None
    known = ", ".join(names) if names else f"0 to {width - 1}"
    require(number is not None and -width <= number < width, f"{path}: wanted a label column out of {known}", label)
    return (number or 0) % width


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _bytes(path: str | os.PathLike) -> bytes:
    content = Path(path).read_bytes()
    if content[:2] != b"\x1f\x8b":
        require(not os.fspath(path).endswith(".gz"), f"{path}: wanted a gzip file, which starts with 1f 8b",
                content[:2].hex(" "))
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: wanted a whole gzip file, it is torn ({_first_line(error)})") from None


def _text(path: str | os.PathLike) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: wanted a text file of numbers, came something else") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
