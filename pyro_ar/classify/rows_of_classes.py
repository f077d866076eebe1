"""Errors that name the class which has too few rows."""

import contextlib

from collections.abc import Iterator

import numpy as np

from torch import Tensor

from pyro_ar.checks import require

__all__ = ["naming_classes", "require_rows"]


def require_rows(labels: np.ndarray, least: int, why: str) -> None:
    """Raise `ValueError` unless each class has so many rows.

    Args:
        labels: One per row.
        least: How many.
        why: What wants them, the beginning of a sentence.

    Example:
        >>> require_rows(np.array(["a", "a", "b"]), 2, "an inner split wants")
        Traceback (most recent call last):
            ...
        ValueError: an inner split wants 2 rows or more of every class; got 1 of 'b'
    """
    classes, counts = np.unique(labels, return_counts=True)
    few = [f"{counts[c]} of {classes.tolist()[c]!r}" for c in counts.argsort(kind="stable") if counts[c] < least]
    require(not few, f"{why} {least} rows or more of every class; got {_some(few)}")


@contextlib.contextmanager
def naming_classes(classes: np.ndarray, shares: Tensor) -> Iterator[None]:
    """What fails in some entries of a batch of joints, one for each class, says which classes these are, and how many rows they have.

    Args:
        classes: `(C,)`.
        shares: Of the rows in the classes, `(N, C)`.
    """
    try:
        yield
    except ValueError as error:
        # The class is the leftmost dimension of the batch; joints that all classes share have none.
        bad = sorted({entry[0] for entry in getattr(error, "entries", ()) if entry and entry[0] < len(classes)})
        if bad and error.args:
            rows = (shares > 0).sum(0).tolist()
            named = [f"{classes.tolist()[c]!r} ({rows[c]} row{'s' * (rows[c] != 1)})" for c in bad]
            error.args = (f"{error.args[0]}, of class {_some(named)}", *error.args[1:])
        if len(shares) == 1 and error.args:
            error.args = (f"{error.args[0]}, of n_samples=1", *error.args[1:])
        raise


def _some(parts: list[str]) -> str:
    return ", ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "")
