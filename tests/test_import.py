"""Importing changes no global state, and is quick to read: no training engine, no plots."""

import subprocess
import sys

CODE = """
import sys, torch, pyro
before = (torch.get_default_dtype(), torch.distributions.Distribution._validate_args, torch.random.get_rng_state().tolist(), torch.is_grad_enabled())
import pyro_ar
after = (torch.get_default_dtype(), torch.distributions.Distribution._validate_args, torch.random.get_rng_state().tolist(), torch.is_grad_enabled())
assert before == after
assert "lightning" not in sys.modules and "matplotlib.pyplot" not in sys.modules
assert sorted(pyro_ar.__all__) == list(pyro_ar.__all__), "public names are kept in order"
for name in pyro_ar.__all__:
    getattr(pyro_ar, name)
"""


def test_import_changes_no_global_state():
    subprocess.run([sys.executable, "-c", CODE], check=True)
