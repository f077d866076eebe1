"""The Python of the README and of the pages below runs as it stands, block after block in one module."""

import re
import sys
import types

from pathlib import Path

import pytest


@pytest.mark.parametrize("page", ["README.md", "docs/classifying.md", "docs/comparing.md", "docs/completing.md", "docs/extending.md", "docs/incomplete.md",
                                  "docs/latent_trees.md", "docs/neural_joints.md"])
def test_python_blocks_run(page, monkeypatch):
    text = (Path(__file__).parent.parent / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    module = types.ModuleType("page")  # a real module, so that its classes can be pickled
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks:
        exec(compile(block, page, "exec"), module.__dict__)  # noqa: S102
