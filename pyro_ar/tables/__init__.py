"""Explicit joints: products of tables, with closed-form fits, evidence and exact queries."""

from pyro_ar.tables.base import TableJoint, TablePosterior
from pyro_ar.tables.bayes_net import BayesNet
from pyro_ar.tables.chow_liu import ChowLiuTree
from pyro_ar.tables.full_table import FullTable
from pyro_ar.tables.independent import FullyIndependent
from pyro_ar.tables.markov_chain import MarkovChain

__all__ = ["BayesNet", "ChowLiuTree", "FullTable", "FullyIndependent", "MarkovChain", "TableJoint", "TablePosterior"]
