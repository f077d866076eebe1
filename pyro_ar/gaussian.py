"""`Gaussian`, which lives in `pyro_ar.elliptical`."""

from pyro_ar.elliptical.gaussian import Gaussian

__all__ = ["Gaussian"]
