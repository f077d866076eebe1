"""Every test starts from the same random state and an empty parameter store, and leaves none behind."""

import random

import numpy as np
import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def _isolated():
    """Fork and seed the random number generators; clear Pyro's parameter store."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        yield
        pyro.clear_param_store()
    random.setstate(states[0])
    np.random.set_state(states[1])


@pytest.fixture
def float64():
    """Double precision by default, for this test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch.float64
    torch.set_default_dtype(before)
