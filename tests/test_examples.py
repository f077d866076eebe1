"""Every example runs, with few steps."""

import subprocess
import sys

from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


LONG = ("abstain", "missing_covariates", "missing_not_at_random", "mixture_of_chains", "next_pixel", "pooled_classes", "random_weights", "sample_digits",
        "semi_supervised", "shakespeare", "tabular")


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in LONG else ()) for path in EXAMPLES])
def test_example_runs(path):
    done = subprocess.run([sys.executable, str(path), "--steps", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
