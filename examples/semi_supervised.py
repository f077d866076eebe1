"""Semi-supervised learning in Pyro: the class of an unlabelled row is a latent variable, enumerated and summed out.

Digits in 16 principal components; a Gaussian per class. Once the model sees the labelled rows alone (1, 5 or 10 % of the training rows, at
least one per class), once all rows, of which the others have no label. Test accuracy over several draws of the rows, and the gain draw by draw.
Run: python examples/semi_supervised.py [--steps 60]
"""

import argparse

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.optim import Adam
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import pyro_ar as par

from pyro_ar.experiments.occlusion.scoring import resampled_error

CLASSES, D = 10, 16
PRIOR_ROWS, SPREAD = 10.0, 0.4                                   # the covariance of a class is expected at 0.4 I, with the weight of ten rows


def inverse(precision):
    covariance = precision.inverse()
    return (covariance + covariance.mT) / 2                      # symmetric to the last digit


def model(x, label, unlabelled):
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((CLASSES,), 5.0)))
    with pyro.plate("classes", CLASSES):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([D]).to_event(1))
        wishart = dist.Wishart(torch.tensor(PRIOR_ROWS + D + 1), covariance_matrix=torch.eye(D) / (PRIOR_ROWS * SPREAD))
        covariance = inverse(pyro.sample("precision", wishart))
    with pyro.plate("labelled", len(x)):
        y = pyro.sample("y", dist.Categorical(weights), obs=label)
        pyro.sample("x", par.Gaussian(loc[y], covariance[y]), obs=x)
    if len(unlabelled):
        with pyro.plate("unlabelled", len(unlabelled)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("u", par.Gaussian(loc[z], covariance[z]), obs=unlabelled)


def fit(x, label, unlabelled, steps):
    """The most probable parameters, as a classifier: the prior, and one joint of batch shape (CLASSES,)."""
    pyro.clear_param_store()
    centres = torch.stack([x[label == c].mean(0) for c in range(CLASSES)])
    start = {"weights": torch.full((CLASSES,), 0.1), "loc": centres, "precision": (torch.eye(D) / SPREAD).expand(CLASSES, D, D)}
    guide = AutoDelta(pyro.poutine.block(model, hide=["z"]), init_loc_fn=lambda site: start[site["name"]].clone())
    elbo = TraceEnum_ELBO(max_plate_nesting=1) if len(unlabelled) else Trace_ELBO()
    svi = SVI(model, guide, Adam({"lr": 0.05}), elbo)
    for _ in range(steps):
        svi.step(x, label, unlabelled)
    found = guide(x, label, unlabelled)
    return par.Mixture(found["weights"].log().detach(), par.Gaussian(found["loc"].detach(), inverse(found["precision"].detach())))


def one_draw(x, y, share, seed, steps):
    """Test accuracy of the labelled rows alone, and of all rows."""
    random = np.random.default_rng(seed)
    order = torch.from_numpy(random.permutation(len(x)))
    train, test = order[:1297], order[1297:]
    first = torch.stack([train[y[train] == c][0] for c in range(CLASSES)])       # at least one row of each class
    others = train[~torch.isin(train, first)]
    more = max(0, round(share * len(train)) - CLASSES)
    known, unknown = torch.cat([first, others[:more]]), others[more:]
    accuracy = []
    for unlabelled in (x[:0], x[unknown]):
        classifier = fit(x[known], y[known], unlabelled, steps)
        guess = classifier.component_posterior(x[test]).probs.argmax(-1)
        accuracy.append(100 * (guess == y[test]).double().mean().item())
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60, help="of the optimiser; with fewer than 10, one draw only")
    parser.add_argument("--draws", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    pyro.set_rng_seed(0)
    images, y = load_digits(return_X_y=True)
    x = torch.tensor(PCA(D, whiten=True, random_state=0).fit_transform(images), dtype=torch.float)
    y = torch.tensor(y)
    draws = options.draws if options.steps >= 10 else 1
    print("labels   rows alone   all rows    gain (standard error)")
    for share in (0.01, 0.05, 0.10):
        scores = np.array([one_draw(x, y, share, seed, options.steps) for seed in range(draws)])
        gain = scores[:, 1] - scores[:, 0]
        error = float(resampled_error(gain, (len(x) - 1297) / 1297))  # draws share rows
        print(f"{share:5.0%} {scores[:, 0].mean():11.1f} % {scores[:, 1].mean():8.1f} % {gain.mean():+8.1f} ({error:.1f})", flush=True)


if __name__ == "__main__":
    main()
