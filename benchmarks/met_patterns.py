"""What an any-order net says under a pattern that its training never met, and what changes when it does meet it.

OrderlessNADE learns 8x8 patches of colour photographs (grey levels and two differences of colours, as in `pyro-ar complete`). Usually training shows a part of
all variables, drawn evenly: that all grey levels and no colour are seen does not come up. Here a share of the training patterns shows all grey levels
first, and an even part of the colours after them; the rest are the usual ones. Held-out nats: of the colours given all greys, per hidden variable, ± over
images; of whole patches in orders drawn at random, per variable; of half of the variables given the others; and of two planes given one of the colours,
which stays a pattern that training does not meet.

    python benchmarks/met_patterns.py [--shares 0 0.5] [--epochs 60]

takes about two minutes of one core for each share.
"""

import argparse

import torch

import pyro_ar as par

from pyro_ar.experiments.complete.lineup import EPOCHS, LOGISTICS
from pyro_ar.experiments.complete.spaces import colours
from pyro_ar.neural.registry import FAMILIES
from pyro_ar.outputs import DiscretisedLogisticMixture

SHOWN = FAMILIES["OrderlessNADE"].shown


class GreysFirst(par.OrderlessNADE):
    """Trained on patterns of which a share shows the first plane whole."""

    share = 0.0

    def training_log_prob(self, x, context=None, visible=None):
        if not self.training:
            return super().training_log_prob(x, context, visible)
        joint = self(context)
        x = joint.check_value(x, torch.ones_like(x, dtype=torch.bool)).to(joint.dtype).flatten(1)
        n, plane = x.shape[1], x.shape[1] // 3
        first = torch.rand(len(x), 1) < self.share
        least = torch.where(first, plane, 0)
        shown = least + (torch.rand(len(x), 1) * (n - least)).floor()
        place = torch.rand(len(x), n)
        place = torch.where(first & (torch.arange(n) < plane), place - 2, place)
        known = place.argsort(-1).argsort(-1) < shown
        log_p = self.output.log_prob(self.net.given_known(x, known, joint.context), x)
        return torch.where(known, 0.0, log_p).sum(-1) * ((n - least) / (n - shown)).squeeze(-1)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5])
    asked.add_argument("--epochs", type=int, default=EPOCHS)
    options = asked.parse_args()
    torch.set_num_threads(1)
    space = colours()
    cut = len(space.train) // 10 // space.together * space.together
    held, train = (part.reshape(-1, *space.event_shape) for part in (space.train[:cut], space.train[cut:]))
    x = space.test[:100].reshape(-1, *space.event_shape)
    half = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    for share in options.shares:
        torch.manual_seed(0)
        GreysFirst.share = share
        family = GreysFirst(space.event_shape, output=DiscretisedLogisticMixture(space.num_states, LOGISTICS), **SHOWN.options)
        fitting = {"batch_size": 64, "lr": 3e-3, "patience": 10, **SHOWN.fit, "epochs": options.epochs}
        par.fit(family, train, held_out=(held,), seed=0, progress=False, accelerator="cpu", **fitting)
        joint = family.eval()()
        with torch.no_grad():
            planes = [joint.given(x, seen).log_prob(x) / 128 for seen in torch.eye(3, dtype=torch.bool)[:, :, None, None].expand(3, *space.event_shape)]
            whole = (family.training_log_prob(x) / x[0].numel()).mean()
            others = (joint.given(x, half).log_prob(x) / (~half).flatten(1).sum(1)).mean()
        print(f"greys first in {share:.0%} of the patterns: given greys {planes[0].mean():.3f}±{planes[0].std() / len(x) ** 0.5:.3f}, whole {whole:.3f}, "
              f"half {others:.3f}, given a plane of colours {planes[1].mean():.3f} and {planes[2].mean():.3f}", flush=True)


if __name__ == "__main__":
    main()
