r"""From a set or a file to rows of states: training and test rows, every column 0, 1, ..., and what was changed said aloud."""

from collections.abc import Callable, Sequence

import torch

from torch import Generator, Tensor

from pyro_ar import data as _data
from pyro_ar.checks import require
from pyro_ar.data.files import shortened

__all__ = ["MAX_STATES", "load_split"]

MAX_STATES = 256  # of a variable, before its values count as real numbers


def load_split(name_or_path: str, *, label: str | int | None = None, test_share: float = 0.2, seed: int = 0,
               say: Callable[[str], None] = lambda line: None) -> tuple[str, Tensor, Tensor]:
    """Name, training and test rows: of a named set its own splits, of a file a random share of the rows.

    The values of each column become 0, 1, ... in their order, over training and test rows, so no state is counted that never occurs. A
    column of one value says nothing, and is left out. Hidden cells stay NaN.

    Args:
        name_or_path: As in `par.data.load`.
        label: A column that is no variable.
        test_share: Of a file without splits.
        seed: Of the random share.
        say: Where it goes which line was taken for names, which columns were recoded or left out, and where cells are hidden.

    Raises:
        ValueError: Values that are no whole numbers, more than `MAX_STATES` different ones in a column, one value in every column, or too
            few rows.
        FileNotFoundError: As in `par.data.load`.
    """
    train = _data.load(name_or_path, "train", label=label)
    _check_whole(train.name, train.x)
    for note in (*train.notes, train.hidden_cells):
        if note:
            say(note)
    names = train.columns or [str(i) for i in range(train.x.shape[1])]
    if train.name.endswith(" train"):
        test = _data.load(name_or_path, "test")
        x, y = _recoded(train.name, train.x, test.x, names, say)
        return train.name.removesuffix(" train"), x, y
    require(0 < test_share < 1, "test_share must lie between 0 and 1", test_share)
    order = torch.randperm(len(train.x), generator=Generator().manual_seed(seed))
    cut = round(test_share * len(order))
    require(cut >= 2 and len(order) - cut >= 10, f"{train.name}: wanted at least 10 training rows and 2 test rows", f"{len(order)} rows")
    x, y = _recoded(train.name, train.x[order[cut:]], train.x[order[:cut]], names, say)
    return train.name, x, y


def _check_whole(name: str, x: Tensor) -> None:
    require(bool((x.isnan() | (x == x.round())).all()), f"{name}: wanted states, whole numbers; came real numbers (bin them first)")


def _recoded(name: str, train: Tensor, test: Tensor, names: Sequence[str], say: Callable[[str], None]) -> tuple[Tensor, Tensor]:
    """The same with the values of each column 0, 1, ... in their order, and without columns of one value."""
    both = torch.cat([train, test])
    _check_whole(name, both)
    columns, changed, constant = [], [], []
    for i, column in enumerate(both.T):
        seen = ~column.isnan()
        values, codes = column[seen].unique(return_inverse=True)
        wanted = f"{name}: wanted states, at most {MAX_STATES} different values of a variable (bin them first); column {names[i]} has"
        require(len(values) <= MAX_STATES, wanted, len(values))
        if len(values) <= 1:
            constant.append(names[i])
            continue
        coded = column.clone()
        coded[seen] = codes.to(column.dtype)
        if not torch.equal(coded[seen], column[seen]):
            changed.append(names[i])
        columns.append(coded)
    require(len(columns) > 0, f"{name}: wanted a column with two different values; every column is constant")
    if constant:
        say(f"left out, since they have one value in all rows and so tell no two models apart: {shortened(constant)}")
    if changed:
        say(f"values recoded to 0, 1, ... in their order in {len(changed)} column{'s' * (len(changed) > 1)}: {shortened(changed)}")
    coded = torch.stack(columns, -1)
    return coded[: len(train)], coded[len(train):]
