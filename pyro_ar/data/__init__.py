r"""Loaders: the embedded digits, the benchmark sets under `PYRO_AR_DATA`, and files of your own.

Nothing is downloaded, and nothing is replaced: a named set that is missing is an error.

=============  ==========================================================================
suffix         what is read
=============  ==========================================================================
`.idx`, none   IDX as in MNIST (`...-ubyte`), also `.gz`; images get their shape
`.amat`        rows of numbers separated by blanks
`.csv`         numbers or categories separated by `,` `;` or tabs, with or without a line of names;
               empty cells (`NA`, `?`, ... too) are NaN: hidden
`.npz`         the array `x`, or one named as the split, or the only one; labels in `y`
`.mat`         MATLAB up to version 7, the same names
=============  ==========================================================================

A text is read by `load_text`, and numbered by an `Alphabet`.
"""

from pyro_ar.data.dataset import Dataset, digits
from pyro_ar.data.files import load_amat, load_csv, load_idx, load_mat, load_npz, read_csv
from pyro_ar.data.named import load, load_parts, named_sets
from pyro_ar.data.text import Alphabet, load_text

__all__ = [
    "Alphabet", "Dataset", "digits", "load", "load_amat", "load_csv", "load_idx", "load_mat", "load_npz", "load_parts", "load_text", "named_sets",
    "read_csv",
]
