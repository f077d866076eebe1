"""Autoregressive joints by neural nets: the contract of a net, the chain rule, and a file for each family."""

from pyro_ar.neural.any_order_transformer import AnyOrderTransformer, AnyOrderTransformerNet
from pyro_ar.neural.autoregressive import Autoregressive
from pyro_ar.neural.causal_transformer import CausalTransformer, CausalTransformerNet
from pyro_ar.neural.family import Family
from pyro_ar.neural.fvsbn import FVSBN, LinearNet
from pyro_ar.neural.made import MADE, MADENet
from pyro_ar.neural.mixture_chain import MixtureChain, MixtureChainNet
from pyro_ar.neural.nade import NADE, NADENet
from pyro_ar.neural.net import AnyOrderNet, Net
from pyro_ar.neural.orderless_nade import OrderlessNADE, OrderlessNADENet
from pyro_ar.neural.over_orders import OverOrders
from pyro_ar.neural.per_dimension_mlp import PerDimensionMLP, PerDimensionMLPNet
from pyro_ar.neural.pixel_cnn import PixelCNN, PixelCNNNet
from pyro_ar.neural.pixel_rnn import DiagonalBiLSTM, DiagonalBiLSTMNet, RowLSTM, RowLSTMNet
from pyro_ar.neural.recurrent_ar import RecurrentAR, RecurrentARNet
from pyro_ar.neural.wavenet import WaveNet, WaveNetNet

__all__ = [
    "FVSBN", "MADE", "NADE", "AnyOrderNet", "AnyOrderTransformer", "AnyOrderTransformerNet", "Autoregressive", "CausalTransformer",
    "CausalTransformerNet", "DiagonalBiLSTM", "DiagonalBiLSTMNet", "Family", "LinearNet", "MADENet", "MixtureChain", "MixtureChainNet", "NADENet",
    "Net", "OrderlessNADE", "OrderlessNADENet", "OverOrders", "PerDimensionMLP", "PerDimensionMLPNet", "PixelCNN", "PixelCNNNet", "RecurrentAR",
    "RecurrentARNet", "RowLSTM", "RowLSTMNet", "WaveNet", "WaveNetNet",
]
