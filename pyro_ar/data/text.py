r"""Text as rows of characters, and back."""

import gzip
import os

from collections.abc import Sequence

import torch

from torch import Tensor

from pyro_ar.checks import require

__all__ = ["Alphabet", "load_text"]


class Alphabet:
    r"""The characters of a text, numbered: what a model of text has as states.

    Args:
        characters: Each one once, in the order of their numbers.

    Raises:
        ValueError: No text, or a character that occurs twice.

    Example:
        >>> letters = Alphabet.of("banana")
        >>> letters, letters.encode("nab")
        (Alphabet('abn'), tensor([2, 0, 1]))
        >>> letters.decode(torch.tensor([1.0, 0.0, 2.0]))
        'ban'
        >>> [letters.decode(row) for row in letters.windows("banana", 3)]
        ['ban', 'ana']
    """

    def __init__(self, characters: str) -> None:
        require(isinstance(characters, str) and len(characters) > 0, "an alphabet wants a text of its characters", characters)
        self.characters = characters
        self._number = {character: i for i, character in enumerate(characters)}
        require(len(self._number) == len(characters), "each character of an alphabet must occur once", characters)

    @classmethod
    def of(cls, text: str) -> "Alphabet":
        """The characters of a text, sorted."""
        return cls("".join(sorted(set(text))))

    def __repr__(self) -> str:
        return f"Alphabet({self.characters!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alphabet) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """The numbers of the characters, `(len(text),)`, integers.

        Raises:
            ValueError: A character that the alphabet lacks.
        """
        strange = sorted(set(text) - set(self.characters))
        require(not strange, f"the text must hold characters of the alphabet only, {self.characters!r}", "".join(strange))
        return torch.tensor([self._number[character] for character in text], dtype=torch.long)

    def decode(self, x: Tensor | Sequence[int]) -> str:
        """The text of a row of numbers, `(length,)`.

        Raises:
            ValueError: Not a row, or numbers that are none of the alphabet's.
        """
        row = torch.as_tensor(x)
        require(row.ndim == 1, "a text is one row of numbers", row)
        good = bool(((row >= 0) & (row < len(self)) & (row == row.floor())).all()) if len(row) else True
        require(good, f"the numbers of a text must be 0 to {len(self) - 1}", row)
        return "".join(self.characters[int(i)] for i in row.tolist())

    def windows(self, text: str, length: int, step: int | None = None) -> Tensor:
        """Pieces of a text as rows, `(N, length)`, one beginning every `step` characters (None: side by side); what is left over at the end is dropped.

        Raises:
            ValueError: A text shorter than one piece, sizes below one, or a character that the alphabet lacks.
        """
        step = length if step is None else step
        require(length >= 1 and step >= 1, "length and step must be 1 or more", length, step)
        require(len(text) >= length, f"the text must have {length} characters or more", len(text))
        return self.encode(text).unfold(0, length, step).clone()


def load_text(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8, `.gz` allowed.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is torn, or no UTF-8.
    """
    path = os.fspath(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8") as file:
            return file.read()
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: wanted text in UTF-8; {error}") from None
