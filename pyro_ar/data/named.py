r"""Data by name or by path; a named set that is missing is an error, and never something else."""

import os

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyro_ar.checks import require
from pyro_ar.data.dataset import Dataset, as_dataset, as_labels, as_rows, digits
from pyro_ar.data.files import load_csv, load_idx, load_mat, load_npz, read_table

__all__ = ["load", "load_parts", "named_sets"]


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


def load_parts(name_or_path: str | os.PathLike, *, label: str | int | None = None) -> tuple[Dataset, Dataset | None]:
    """What is to be learnt from, and the official test part of a named set that has one.

    Raises:
        FileNotFoundError: As `load`.
        ValueError: As `load`.
    """
    train = load(name_or_path, label=label)
    name = os.fspath(name_or_path)
    named = name in (sets := named_sets()) or any(full.endswith("/" + name) for full in sets)
    return train, load(name, "test") if named and name != "wine" else None


def _load_file(path: Path, split: str, label: str | int | None) -> Dataset:
    require(path.is_file(), "the data must be a file or the name of a set", str(path))
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix == ".npz":
        x, y = load_npz(path, split)
    elif suffix == ".mat":
        x, y = load_mat(path, split)
    elif suffix in (".csv", ".tsv", ".amat"):
        return as_dataset(path.name, *read_table(path, label))
    else:
        require(suffix in ("", ".idx") or path.name.removesuffix(".gz").endswith("ubyte"),
                f"{path}: wanted a file that ends in .idx, -ubyte, .amat, .csv, .npz or .mat, .gz allowed")
        x, y = load_idx(path), None
    return as_dataset(path.name, x, y)


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
    return Dataset(f"{name} {split}", as_rows(x.reshape(len(x), -1)), as_labels(name, y), 256, (28, 28))


def _binarized_mnist(name: str, split: str) -> Dataset:
    _check_split(name, split, "train", "valid", "test")
    path = _find(name, "binarized_mnist", "binarized_mnist.npz")
    bits, y = load_npz(path, f"{split}_bits")[0], load_npz(path, f"{split}_labels_derived")[0]
    return Dataset(f"{name} {split}", as_rows(np.unpackbits(bits, axis=1)), as_labels(name, y), 2, (28, 28))


def _splits(name: str, split: str) -> Dataset:
    _check_split(name, split, "train", "valid", "test")
    x, y = load_npz(_find(name, *(name + ".npz").split("/")), split)
    image = (16, 8) if name == "uci8/ocr_letters" else None
    return Dataset(f"{name} {split}", as_rows(x), None if y is None else as_labels(name, y), 2, image)


def _wine(name: str, split: str) -> Dataset:
    _check_split(name, split, "train")
    x, y = load_csv(_find(name, "wine", "winequality-red.csv"), "quality")
    return Dataset(name, as_rows(x), None if y is None else as_labels(name, y))
