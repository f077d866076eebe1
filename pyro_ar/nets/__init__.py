"""Nets: from the variables in chain order to the raw parameters of all conditionals."""

from pyro_ar.nets.base import AnyOrderNet, Net
from pyro_ar.nets.linear import LinearNet
from pyro_ar.nets.made import MADENet
from pyro_ar.nets.mixture_chain import MixtureChainNet
from pyro_ar.nets.nade import NADENet
from pyro_ar.nets.orderless import OrderlessNADENet

__all__ = ["AnyOrderNet", "LinearNet", "MADENet", "MixtureChainNet", "NADENet", "Net", "OrderlessNADENet"]
