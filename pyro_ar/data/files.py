r"""Readers of files: IDX, `.amat`, CSV, `.npz` and MATLAB; a torn file is an error that says so."""

import csv
import gzip
import io
import math
import os
import re
import warnings
import zipfile
import zlib

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyro_ar.checks import require

__all__ = ["Table", "is_empty", "is_number", "load_amat", "load_csv", "load_idx", "load_mat", "load_npz", "read_csv", "read_table", "shortened"]

Arrays = tuple[np.ndarray, np.ndarray | None]


class Table(NamedTuple):
    """What a table in a file holds.

    Attributes:
        x: `(N, n)`, NaN where a cell is empty.
        y: `(N,)`, the label column, if there is one.
        columns: What the columns of `x` are called: by the line of names, or by their numbers in the file.
        notes: What was done to the table, one sentence each, for the user to read.
    """

    x: np.ndarray
    y: np.ndarray | None
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()


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
    return read_table(path, label)[:2]


def load_csv(path: str | os.PathLike, label: str | int | None = None) -> Arrays:
    """Rows and labels of a table, NaN where a cell is empty; what `read_table` leaves out is warned of.

    Raises:
        ValueError: As `read_table`.
    """
    table = read_table(path, label)
    for note in table.notes:
        if note.startswith("left out"):
            warnings.warn(f"{path}: {note}", UserWarning, stacklevel=2)
    return table[:2]


def read_table(path: str | os.PathLike, label: str | int | None = None) -> Table:
    """The table of a `.csv`, `.tsv` or `.amat` file; `read_csv` says when the first line of a CSV file is taken for names.

    ====================================  ===================================================================================
    a cell or column                      what becomes of it
    ====================================  ===================================================================================
    empty, NA, N/A, NaN, null, None,      NaN, a hidden cell: `EMPTY`, in capitals or not, blanks around it or not
    missing, ?, -
    no number in the whole column         categories: they become 0, 1, ... in alphabetical order
    0, 1, ..., N - 1 (or 1, ..., N) in a  the row numbers that pandas (or R) writes: left out
    column without a name
    no value in the whole column          left out
    ====================================  ===================================================================================

    Args:
        path: Of the file, `.gz` allowed.
        label: Column of the labels, by name or number in the file; empty cells of it are NaN too.

    Raises:
        ValueError: A column mixes numbers with words, a row has another length, or there is no such column.
    """
    if Path(os.fspath(path).removesuffix(".gz")).suffix.lower() == ".amat":
        names, lines = None, [line.split() for line in _text(path).splitlines() if line.strip()]
    else:
        names, lines = read_csv(path)
    require(len(lines) > 0, f"{path}: wanted rows of numbers, the file is empty")
    width = len(lines[0]) if names is None else len(names)
    for number, line in enumerate(lines, 1 if names is None else 2):
        require(len(line) == width, f"{path}: wanted {width} columns in line {number}", len(line))
    called = tuple(str(i) if names is None else name or f"(column {i})" for i, name in enumerate(names or lines[0]))
    table, words = _numbers(path, lines)
    chosen = None if label is None else _column(path, label, names, width)
    left_out = {i: "its row numbers" if names is not None and _is_index(names[i], column) else "empty in all rows" if np.isnan(column).all() else ""
                for i, column in enumerate(table.T) if i != chosen}
    kept = [i for i, reason in left_out.items() if not reason]
    require(len(kept) > 0, f"{path}: wanted a column of values besides labels and row numbers", ", ".join(called))
    said = [f"first line taken for names of the columns: {shortened(called)}"] if names is not None else []
    said += [f"left out, {reason}: {called[i]}" for i, reason in left_out.items() if reason]
    if words:
        said.append(f"words became 0, 1, ... in alphabetical order: {shortened([f'{called[i]} ({shortened(w, 6)})' for i, w in words.items()])}")
    return Table(table[:, kept], None if chosen is None else table[:, chosen], tuple(called[i] for i in kept), tuple(said))


def shortened(names: Sequence[str], most: int = 20) -> str:
    """The names, or the first ones and how many there are."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def read_csv(path: str | os.PathLike) -> tuple[list[str] | None, list[list[str]]]:
    """Names of the columns, if there are any, and the cells of the other lines.

    The first line holds names if no cell of it is a number; or if one, which is not a usual sign for a missing value, is no number above
    a column of numbers; or if it is 0, 1, 2, ..., as pandas writes it (of two columns: where 0 or 1 does not occur below).

    Raises:
        ValueError: No text, or no table.
    """
    text = _text(path)
    first = re.split("[\r\n]", text, maxsplit=1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)  # lines may end as on old Macs
    try:
        lines = [[cell.strip() for cell in line] for line in reader if line]
    except csv.Error as error:
        raise ValueError(f"{path}: wanted a table, came something else from line {reader.line_num} on ({_first_line(error)}); "
                         "is a quotation mark missing?") from None
    return (lines[0], lines[1:]) if _has_names(lines) else (None, lines)


EMPTY = {"", "?", "-", "na", "n/a", "<na>", "nan", "null", "none", "missing"}


def is_empty(cell: str) -> bool:
    """Whether a cell says that there is no value: one of `EMPTY`."""
    return cell.strip().lower() in EMPTY


def _has_names(lines: list[list[str]]) -> bool:
    if not lines or not any(is_number(cell) for cell in lines[0]):
        return bool(lines) and not all(map(is_empty, lines[0]))
    first, rest = lines[0], lines[1:]
    if not rest or any(len(line) != len(first) for line in rest):
        return False
    if first == [str(i) for i in range(len(first))]:
        return len(first) > 2 or any(cell not in column for cell, column in zip(first, zip(*rest, strict=True), strict=True))
    below = [[cell for cell in column if not is_empty(cell)] for column in zip(*rest, strict=True)]
    return any(not is_number(cell) and not is_empty(cell) and len(column) > 0 and all(map(is_number, column))
               for cell, column in zip(first, below, strict=True))


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


def _numbers(path: str | os.PathLike, lines: list[list[str]]) -> tuple[np.ndarray, dict[int, list[str]]]:
    """The cells as numbers, NaN where empty, and the words of the columns that held words, in the order of their codes."""
    table, words = np.full((len(lines), len(lines[0])), math.nan), {}
    for i, column in enumerate(zip(*lines, strict=True)):
        full = [row for row, cell in enumerate(column) if not is_empty(cell)]
        known = [column[row] for row in full]
        if known and not any(map(is_number, known)):
            words[i] = sorted(set(known))
            codes = {word: code for code, word in enumerate(words[i])}
            table[full, i] = [codes[word] for word in known]
            continue
        odd = next((row for row in full if not is_number(column[row])), None)
        require(odd is None, f"{path}: wanted numbers only; got {column[odd or 0]!r} in row {(odd or 0) + 1}")
        table[full, i] = [float(cell) for cell in known]
    return table, words


def _is_index(name: str, column: np.ndarray) -> bool:
    """Whether a column without a name counts the rows."""
    rows = np.arange(len(column))
    return bool(re.fullmatch(r"|unnamed: \d+", name.lower())) and (np.array_equal(column, rows) or np.array_equal(column, rows + 1))


def _column(path: str | os.PathLike, label: str | int, names: list[str] | None, width: int) -> int:
    if names is not None and str(label) in names:
        return names.index(str(label))
    number = int(label) if str(label).lstrip("-").isdigit() else None
    known = ", ".join(names) if names else f"0 to {width - 1}"
    require(number is not None and -width <= number < width, f"{path}: wanted a label column out of {known}", label)
    return (number or 0) % width


def is_number(cell: str) -> bool:
    """Whether a cell is a number, infinity among them."""
    try:
        return not math.isnan(float(cell))
    except ValueError:
        return False


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
