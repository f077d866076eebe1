r"""Figures that a stranger understands at once; colours that colour-blind readers tell apart.

Each function returns a `matplotlib.figure.Figure`, made without global state: save it with
`figure.savefig(path)`, or show it in a notebook by returning it.
"""

from pyro_ar.plots.completions import Completed, completion_panel
from pyro_ar.plots.images import Tile, image_rows, posterior_panel
from pyro_ar.plots.looking import Revealed, reveal_panel, risk_curves
from pyro_ar.plots.series import curves, dots, reliability_panels
from pyro_ar.plots.style import Series
from pyro_ar.plots.surprise import surprise_maps

__all__ = [
    "Completed", "Revealed", "Series", "Tile", "completion_panel", "curves", "dots", "image_rows", "posterior_panel",
    "reliability_panels", "reveal_panel", "risk_curves", "surprise_maps",
]
