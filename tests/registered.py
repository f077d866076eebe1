"""Every registered family, small: what tests of families and nets are fed from, so that a new one needs no place in them."""

import functools

from pyro_ar.neural.registry import FAMILIES

__all__ = ["ANY_SHAPE", "IMAGE_VARIANTS", "OF_IMAGES", "VARIANTS", "nets"]

ANY_SHAPE = {name: functools.partial(entry.family, **entry.small) for name, entry in FAMILIES.items() if entry.free}
"""From (event_shape, output=, context_dim=, order=) to the family, of those that take any event shape."""

OF_IMAGES = {name: functools.partial(entry.family, **entry.small) for name, entry in FAMILIES.items() if entry.images}
"""The same of those that take images only, of two rows and three columns or more, and no order."""

VARIANTS = {f"{name}, {word}": functools.partial(entry.family, **{**entry.small, **options})
            for name, entry in FAMILIES.items() if entry.free for word, options in entry.variants.items()}
"""More of `ANY_SHAPE`, made with other options."""

IMAGE_VARIANTS = {f"{name}, {word}": functools.partial(entry.family, **{**entry.small, **options})
                  for name, entry in FAMILIES.items() if entry.images for word, options in entry.variants.items()}
"""The same of `OF_IMAGES`; they may come with the only kind of output that they take."""


def nets(families):
    """From (event_shape, output, context_dim) to the nets of such families."""
    return {name: functools.partial(make.func.net_type, **make.keywords) for name, make in families.items()}
