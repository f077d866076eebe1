r"""Results on disk: whole after every unit of work, so that a run may be interrupted at any time.

A unit is one model on one split. The file is written beside its place and then moved there,
which is atomic: a reader, or a killed run, sees the file before or after a unit and nothing between.
"""

import csv
import io
import json
import os
import tempfile

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pyro_ar.checks import require

__all__ = ["Results", "write_atomically", "write_csv"]

FORMAT = 1


class Results:
    """The units that are done, with the settings that they were done with.

    Args:
        path: Of the JSON file.
        settings: What must be the same for units to belong together; values as JSON has them.
        units: Done already.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], units: Iterable[dict[str, Any]] = ()) -> None:
        self.path = path
        self.settings = dict(settings)
        self.units = list(units)

    @classmethod
    def open(cls, path: str | os.PathLike, settings: Mapping[str, Any], *, fresh: bool = False) -> Self:
        """Go on from the file, or start one.

        Args:
            path: Of the JSON file; its folder is made.
            settings: Of this run.
            fresh: Start over, whatever the file holds.

        Raises:
            ValueError: The file is torn, or of other settings; nothing is overwritten.
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
        return cls(path, settings, content["units"])

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The unit with these entries, None if it is still to do."""
        return next((unit for unit in self.units if all(unit[name] == value for name, value in key.items())), None)

    def add(self, unit: dict[str, Any]) -> None:
        """Keep a unit, on disk too."""
        self.units.append(json.loads(json.dumps(unit)))
        self.save()

    def save(self) -> None:
        """Write the file."""
        units = ",\n  ".join(json.dumps(unit, allow_nan=False) for unit in self.units)
        settings = json.dumps(self.settings, indent=1)
        write_atomically(self.path, f'{{"format": {FORMAT},\n "settings": {settings},\n "units": [\n  {units}\n ]}}\n')


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
