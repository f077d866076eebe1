"""How many numbers are held at once: one place to say how much memory a turn of work, and a whole answer, may take."""

__all__ = ["CACHE", "MEMORY", "TURN", "at_once"]

TURN = 2**22  # numbers of one turn: 32 MiB in float64
CACHE = 2**20  # of a turn whose numbers are read again and again: 8 MiB, about what stays in a processor's cache
MEMORY = 2**29  # of what is kept as a whole, before it is refused: 4 GiB


def at_once(each: float, of: int | None = None) -> int:
    """How many things of `each` numbers make one turn, one at least.

    Args:
        each: Numbers of one of them.
        of: Numbers of the turn; None: `TURN`.

    Example:
        >>> at_once(2**20), at_once(1e9), at_once(0) == TURN
        (4, 1, True)
    """
    return max(1, int((TURN if of is None else of) // max(each, 1)))
