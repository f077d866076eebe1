"""Elliptical joints: Gaussian and Student-t, of full or low-rank-plus-diagonal matrices, exact for every pattern."""

from pyro_ar.elliptical.gaussian import Gaussian
from pyro_ar.elliptical.low_rank import LowRankGaussian, LowRankStudentT
from pyro_ar.elliptical.student_t import StudentT

__all__ = ["Gaussian", "LowRankGaussian", "LowRankStudentT", "StudentT"]
