r"""Results on disk: whole after every unit of work, so that a run may be interrupted at any time.

A unit is one model on one split. The file is written beside its place and then moved there,
which is atomic: a reader, or a killed run, sees the file before or after a unit and nothing between.
"""

import csv
import io
import json
import os
import tempfile

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pyro_ar.checks import require
from pyro_ar.provenance import code_digest, other_code

__all__ = ["Results", "write_atomically", "write_csv"]

FORMAT = 1
UNKNOWN = "unknown"  # of files from before digests were kept


class Results:
    """The units that are done, with the settings that they were done with, and digests of the code that did them.

    Args:
        path: Of the JSON file.
        settings: What must be the same for units to belong together; values as JSON has them.
        units: Done already.
        others: Digests of other code of this library that did some of them.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], units: Iterable[dict[str, Any]] = (), others: Iterable[str] = ()) -> None:
        self.path = path
        self.settings = dict(settings)
        self.units = list(units)
        self.others = list(others)

    @classmethod
    def open(cls, path: str | os.PathLike, settings: Mapping[str, Any], *, fresh: bool = False, keep_old_results: bool = False) -> Self:
        """Go on from the file, or start one.

        Args:
            path: Of the JSON file; its folder is made.
            settings: Of this run.
            fresh: Start over, whatever the file holds.
            keep_old_results: Go on with units of other code of this library; `note` says so.

        Raises:
            ValueError: The file is torn, of other settings, or of other code; nothing is overwritten.
            OSError: The folder cannot be made or the file not be read.
        """
        path = Path(path)
        require(path.parent.is_dir() or not path.parent.exists(), "the results go into a folder", str(path.parent))
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))  # as it will be read back: tuples are lists
        if fresh or not path.exists():
            return cls(path, settings)
        content = _read(path)
        differ = [key for key in sorted({*settings, *content["settings"]})
                  if settings.get(key) != content["settings"].get(key)]
        require(not differ, f"{path} holds results of other settings ({', '.join(differ)}); "
                "choose another --out folder, or --fresh to overwrite them")
        others = other_code(content.get("code", [UNKNOWN])) if content["units"] else []
        require(not others or keep_old_results, f"{path} holds results that other code of this library wrote ({', '.join(others)}; this is "
                f"{code_digest()}); choose another --out folder, --fresh to overwrite them, or --keep-old-results to go on")
        return cls(path, settings, content["units"], others)

    @property
    def note(self) -> str:
        """One line about results of other code, empty if there are none."""
        return f"some of these results were written by other code of this library ({', '.join(self.others)}) and are kept" if self.others else ""

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The unit with these entries, None if it is still to do."""
        return next((unit for unit in self.units if all(unit[name] == value for name, value in key.items())), None)

    def each(self, keys: Iterable[Mapping[str, Any]], work: Callable[..., dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The unit of each key, in their order: as it was kept, or done by `work(**key)` and kept."""
        for key in keys:
            unit = self.find(**key)
            if unit is None:
                unit = work(**key)
                self.add(unit)
            yield unit

    def add(self, unit: dict[str, Any]) -> None:
        """Keep a unit, on disk too."""
        self.units.append(json.loads(json.dumps(unit)))
        self.save()

    def save(self) -> None:
        """Write the file."""
        units = ",\n  ".join(json.dumps(unit, allow_nan=False) for unit in self.units)
        settings = json.dumps(self.settings, indent=1)
        code = json.dumps([*self.others, code_digest()])
        write_atomically(self.path, f'{{"format": {FORMAT},\n "code": {code},\n "settings": {settings},\n "units": [\n  {units}\n ]}}\n')


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        whole = (content["format"] == FORMAT and isinstance(content["settings"], dict)
                 and all(isinstance(unit, dict) for unit in content["units"]))
    except (ValueError, KeyError, TypeError):
        whole = False
    require(whole, f"{path} is torn, or holds no results of this program; "
            "choose another --out folder, or --fresh to overwrite it")
    return content


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table with a line of names, written atomically; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Replace the file at once, or leave it as it was."""
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, which hides results from colleagues
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
