"""Joints of transformed variables."""

from pyro_ar.changes.rank_normal import RankNormal
from pyro_ar.changes.transformed import Transformed, logit

__all__ = ["RankNormal", "Transformed", "logit"]
