"""What the commands' options have in common."""

from typing import Annotated

import typer

from pyro_ar.checks import require

__all__ = ["KeepOld", "names_of", "numbers_of"]


KeepOld = Annotated[bool, typer.Option("--keep-old-results", help="Go on with results that other code of this library wrote, which is refused without it.")]


def numbers_of(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers, from a text such as 1,2,3."""
    require(all(part.strip().isdecimal() for part in text.split(",")), f"{option} must be whole numbers, such as 1,2,3", text)
    return tuple(int(part) for part in text.split(","))


def names_of(text: str | None) -> tuple[str, ...] | None:
    """Names, from a text with commas."""
    return None if text is None else tuple(part.strip() for part in text.split(","))
