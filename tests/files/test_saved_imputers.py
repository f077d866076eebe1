"""An imputer comes back from a file with its columns and its joint, and fills and draws as before."""

import numpy as np
import pandas as pd
import pytest

import pyro_ar as par


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 60)
    whole = pd.DataFrame({"size": group + rng.normal(size=60), "colour": np.where(group, "red", "blue"), "pieces": rng.poisson(2 + 5 * group), "unit": "kg",
                          "heavy": group.astype(bool)})
    return whole.astype({"heavy": object}).mask(rng.random(whole.shape) < 0.2)


@pytest.mark.parametrize("joint", ["mixture of 4", "latent tree", None])
def test_frames_are_filled_as_before(joint, table, tmp_path):
    ours = par.JointImputer(joint, fits=2, kinds={"pieces": "count"}, folds=2, random_state=3).fit(table)
    par.save(ours, tmp_path / "file")
    theirs = par.load(tmp_path / "file")
    assert theirs.columns_ == ours.columns_
    assert theirs.get_params() == ours.get_params()
    assert (theirs.chosen_, theirs.scores_) == (ours.chosen_, ours.scores_)
    assert theirs.transform(table).equals(ours.transform(table))
    assert all(a.equals(b) for a, b in zip(ours.sample(table, 2), theirs.sample(table, 2), strict=True))
    with pytest.raises(ValueError, match="never held in fit"):
        theirs.transform(table.assign(colour="mauve"))


@pytest.mark.parametrize("joint", ["gaussian", "rank-normal gaussian", "rank-normal student-t", "mixture of 3 student-t",
                                   "rank-normal mixture of 3 student-t"])
def test_arrays_are_filled_as_before(joint, tmp_path):
    rows = np.random.default_rng(0).normal(size=(40, 3)).cumsum(1)
    rows[::3, 1] = np.nan
    ours = par.JointImputer(joint, fits=2).fit(rows)
    par.save(ours, tmp_path / "file")
    np.testing.assert_array_equal(par.load(tmp_path / "file").transform(rows), ours.transform(rows))


def test_not_fitted_and_functions(tmp_path):
    par.save(par.JointImputer(folds=4), tmp_path / "file")
    assert par.load(tmp_path / "file").get_params() == par.JointImputer(folds=4).get_params()
    with pytest.raises(ValueError, match="joint"):
        par.save(par.JointImputer(lambda rows, columns, weights, generator: None), tmp_path / "file")
