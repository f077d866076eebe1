r"""Loaders: the embedded digits, the benchmark sets under `PYRO_AR_DATA`, and files of your own.

Nothing is downloaded, and nothing is replaced: a named set that is missing is an error.

=============  ==========================================================================
suffix         what is read
=============  ==========================================================================
`.idx`, none   IDX as in MNIST (`...-ubyte`), also `.gz`; images get their shape
`.amat`        rows of numbers separated by blanks
`.csv`         numbers or categories separated by `,` `;` or tabs, with or without a line of names
`.npz`         the array `x`, or one named as the split, or the only one; labels in `y`
`.mat`         MATLAB up to version 7, the same names
=============  ==========================================================================
"""

import csv
import gzip
import io
import math
import os
import warnings
import zipfile
import zlib

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from torch import Tensor

from pyro_ar.checks import require

__all__ = ["Dataset", "digits", "load", "load_amat", "load_csv", "load_idx", "load_mat", "load_npz", "named_sets", "read_csv"]

Arrays = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Dataset:
    r"""Rows of data, with labels where there are any.

    Attributes:
        name: Where it came from.
        x: `(N, n)` values, floating.
        y: `(N,)` labels as they were given, integer; None without labels.
        num_states: States of every variable, 0 to `num_states - 1`; None where they are real numbers.
        image_shape: `(height, width)` of a row; None where it is no image.
    """

    name: str
    x: Tensor
    y: Tensor | None = None
    num_states: int | None = None
    image_shape: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        require(self.x.ndim == 2 and len(self.x) > 0, f"{self.name}: wanted rows of values", self.x)
        n = self.x.shape[1]
        require(self.y is None or self.y.shape == (len(self.x),), f"{self.name}: wanted one label per row", self.y)
        require(self.image_shape is None or math.prod(self.image_shape) == n,
                f"{self.name}: wanted an image shape of {n} cells", self.image_shape)

    def __repr__(self) -> str:
        return f"Dataset({self})"

    def __str__(self) -> str:
        shape = "x".join(map(str, self.image_shape or ())) or "no image"
        states = f"{self.num_states} states" if self.num_states else "real values"
        labels = "no labels" if self.y is None else f"{len(self.y.unique())} classes"
        return f"{self.name}: {len(self.x)} rows of {self.x.shape[1]} variables ({shape}), {states}, {labels}"

    def binarise(self, threshold: float | None = None) -> "Dataset":
        """Two states: 1 where a value reaches the threshold, by default half of the states.

        Raises:
            ValueError: There is no threshold, and the values have no states.
        """
        if threshold is None:
            require(self.num_states is not None, f"{self.name}: real values need a threshold to be binarised")
            threshold = (self.num_states or 0) // 2
        return replace(self, x=(self.x >= threshold).to(self.x.dtype), num_states=2)

    def head(self, rows: int | None) -> "Dataset":
        """The first rows only."""
        require(rows is None or rows >= 1, "rows must be 1 or more", rows)
        return replace(self, x=self.x[:rows], y=None if self.y is None else self.y[:rows])


def digits(binary: bool = False) -> Dataset:
    """The handwritten digits that scikit-learn embeds: 1797 images, 8x8, 17 grey levels.

    Args:
        binary: Two levels instead, 1 from grey level 8 on.

    Source:
        E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, UCI (its test set).

    Example:
        >>> digits()
        Dataset(digits: 1797 rows of 64 variables (8x8), 17 states, 10 classes)
    """
    from sklearn.datasets import load_digits  # slow to import, and only this function needs it

    bunch = load_digits()
    data = Dataset("digits", _float(bunch.data), torch.as_tensor(bunch.target).long(), 17, (8, 8))
    return data.binarise() if binary else data


def load(name_or_path: str | os.PathLike, split: str = "train", *, label: str | int | None = None) -> Dataset:
    """A named data set, or a file.

    Args:
        name_or_path: `digits`, a set of `named_sets()`, or the path of a file.
        split: `train`, `valid` or `test` where the set has splits.
        label: Column of the labels in `.csv` and `.amat` files: its name, or its number from 0 (-1: the last one).

    Raises:
        FileNotFoundError: No such name or file, or a named set is not under `PYRO_AR_DATA`.
        ValueError: The file is torn or not what its name says, or the set has no such split.
    """
    name = os.fspath(name_or_path)
    if name == "digits":
        return digits()
    if name in (sets := named_sets()):
        return sets[name](name, split)
    twins = [full for full in sets if full.endswith("/" + name)]
    require(len(twins) <= 1, f"there are several sets called {name}: say {' or '.join(twins)}")
    if twins:
        return sets[twins[0]](twins[0], split)
    if not os.path.exists(name):
        raise FileNotFoundError(f"no data set or file called {name!r}; named sets: digits, {', '.join(sets)}")
    return _load_file(Path(name), split, label)


def _load_file(path: Path, split: str, label: str | int | None) -> Dataset:
    require(path.is_file(), "the data must be a file or the name of a set", str(path))
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix == ".npz":
        x, y = load_npz(path, split)
    elif suffix == ".mat":
        x, y = load_mat(path, split)
    elif suffix in (".csv", ".tsv"):
        x, y = load_csv(path, label)
    elif suffix == ".amat":
        x, y = load_amat(path, label)
    else:
        require(suffix in ("", ".idx") or path.name.removesuffix(".gz").endswith("ubyte"),
                f"{path}: wanted a file that ends in .idx, -ubyte, .amat, .csv, .npz or .mat, .gz allowed")
        x, y = load_idx(path), None
    return _dataset(path.name, x, y)


def _dataset(name: str, x: np.ndarray, y: np.ndarray | None) -> Dataset:
    """Rows out of an array of any rank; states where all values are small whole numbers."""
    require(x.ndim >= 2 and x.size > 0, f"{name}: wanted rows of values", f"an array of shape {x.shape}")
    image = (x.shape[1], x.shape[2]) if x.ndim == 3 else None
    rows = _float(x.reshape(len(x), -1))
    require(bool(rows.isfinite().all()), f"{name}: wanted finite numbers, came NaN or infinity")
    states = None
    if bool(((rows >= 0) & (rows < 256) & (rows == rows.round())).all()):
        # Bytes that fill most of their range are grey levels, whether or not the whitest one occurs.
        states = 256 if x.dtype == np.uint8 and x.max() >= 128 else max(int(rows.max()) + 1, 2)
    return Dataset(name, rows, None if y is None else _labels(name, y), states, image)


# Files.


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


def _float(x: np.ndarray) -> Tensor:
    return torch.as_tensor(x).to(torch.get_default_dtype())


def _labels(name: str, y: np.ndarray) -> Tensor:
    y = np.asarray(y).reshape(-1)
    whole = bool(np.isfinite(y).all() and (y == np.round(y)).all())
    require(whole, f"{name}: wanted whole numbers as labels")
    return torch.as_tensor(y.astype(np.int64))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# Named sets.


def named_sets() -> dict[str, Callable[[str, str], Dataset]]:
    """The benchmark sets by name; the files lie in the folder that `PYRO_AR_DATA` names."""
    uci8 = ("adult", "connect4", "dna", "mushrooms", "nips", "ocr_letters")
    debd = ("nltcs", "plants", "jester", "dna")
    tables = [f"uci8/{name}" for name in uci8] + [f"debd/{name}" for name in debd]
    sets: dict[str, Callable[[str, str], Dataset]] = dict.fromkeys(tables, _splits)
    return {"mnist": _mnist, "binarized_mnist": _binarized_mnist, "wine": _wine, **sets}


def _find(name: str, *parts: str) -> Path:
    root = os.environ.get("PYRO_AR_DATA")
    wanted = f"the data set {name} is wanted at {os.path.join(*parts)} in the folder that PYRO_AR_DATA names"
    if not root:
        raise FileNotFoundError(f"{wanted}, which is not set")
    path = Path(root, *parts)
    if not path.is_file():
        raise FileNotFoundError(f"{wanted}; there is no {path}")
    return path


def _check_split(name: str, split: str, *splits: str) -> None:
    require(split in splits, f"{name} has the splits {', '.join(splits)}", split)


def _mnist(name: str, split: str) -> Dataset:
    _check_split(name, split, "train", "test")
    start = "train" if split == "train" else "t10k"
    x = load_idx(_find(name, "mnist", f"{start}-images-idx3-ubyte.gz"))
    y = load_idx(_find(name, "mnist", f"{start}-labels-idx1-ubyte.gz"))
    return Dataset(f"{name} {split}", _float(x.reshape(len(x), -1)), _labels(name, y), 256, (28, 28))


def _binarized_mnist(name: str, split: str) -> Dataset:
    _check_split(name, split, "train", "valid", "test")
    path = _find(name, "binarized_mnist", "binarized_mnist.npz")
    bits, y = load_npz(path, f"{split}_bits")[0], load_npz(path, f"{split}_labels_derived")[0]
    return Dataset(f"{name} {split}", _float(np.unpackbits(bits, axis=1)), _labels(name, y), 2, (28, 28))


def _splits(name: str, split: str) -> Dataset:
    _check_split(name, split, "train", "valid", "test")
    x, y = load_npz(_find(name, *(name + ".npz").split("/")), split)
    image = (16, 8) if name == "uci8/ocr_letters" else None
    return Dataset(f"{name} {split}", _float(x), None if y is None else _labels(name, y), 2, image)


def _wine(name: str, split: str) -> Dataset:
    _check_split(name, split, "train")
    x, y = load_csv(_find(name, "wine", "winequality-red.csv"), "quality")
    return Dataset(name, _float(x), None if y is None else _labels(name, y))
