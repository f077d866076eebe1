r"""Does a classifier know these rows from its training? What is learnt from its answers is wrong if they are answers to what it has learnt."""

import hashlib

from typing import Any

import numpy as np
import torch

from scipy.stats import betabinom
from torch import Tensor

from pyro_ar.checks import require

__all__ = ["digests", "require_new"]

CHANCE = 1e-4  # that new rows are taken for known ones
ROWS = 4096  # at once


def digests(x: Tensor, visible: Tensor | None) -> np.ndarray:
    """One number for each row, `(N,)`: equal where the rows are, to single precision, and as much of them is seen.

    Args:
        x: `(N, *event)`.
        visible: `(N or 1, *event)`; what is hidden is not read. None: all is seen.
    """
    x = x.detach().flatten(1)
    seen = None if visible is None else visible.flatten(1).expand(x.shape)
    found = []
    for i in range(0, len(x), ROWS):
        rows = x[i:i + ROWS].float() + 0.0  # minus zero is zero
        rows = rows if seen is None else torch.where(seen[i:i + ROWS], rows, torch.nan)
        found += [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows.cpu().numpy()]
    return np.frombuffer(b"".join(found), np.uint64)


def require_new(classifier: Any, x: Tensor, visible: Tensor | None, *, why: str) -> None:
    """Refuse rows of which more are among the training rows of the classifier than new rows would be by chance.

    Tables of few states repeat rows. A new row is among N training rows as often as one of these has its like among the others; so the number of
    such coincidences is beta-binomial, from the repeated rows in training.

    Args:
        classifier: Fitted; nothing is asked of one that does not know its training rows.
        x: Rows.
        visible: As in `digests`.
        why: They must be new, for the message.

    Raises:
        ValueError: They are not, with an error of less than `CHANCE`.
    """
    known = getattr(classifier, "training_rows_", None)
    if known is None:
        return
    counts = np.unique(known, return_counts=True)[1]
    repeated = int(counts[counts > 1].sum())
    found = int(np.isin(digests(x, visible), known).sum())
    chance = betabinom.sf(found - 1, len(x), repeated + 0.5, len(known) - repeated + 0.5) if found else 1.0
    require(chance > CHANCE, f"X must be rows that the classifier was not fitted to: {why}. Hold rows out of its fit",
            f"{found} of {len(x)} that it was fitted to")
