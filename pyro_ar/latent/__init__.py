"""Hidden states on a tree: joints that answer every pattern by one pass of messages."""

from pyro_ar.latent.latent_tree import LatentTree

__all__ = ["LatentTree"]
