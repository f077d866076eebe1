"""Table models: evidence against other code and against products of predictives, leave-one-out against fits without the row."""

import itertools
import math

import pytest
import torch

from pyro_ar.comparison import NeuralModel, TableModel, chain_over, compare, table_models
from pyro_ar.comparison.recipes import fit_recipe
from pyro_ar.experiments.compare.run import Plan, run
from pyro_ar.experiments.store import Results
from pyro_ar.inference.bayesian import Bayesian
from pyro_ar.mixture import Averaged, Mixture
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.neural.orderless_nade import OrderlessNADE
from pyro_ar.neural.over_orders import OverOrders
from pyro_ar.outputs import Categorical
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain, chow_liu

SIZES = (2, 3, 2, 2)
PRIORS = {"one": 1.0, "several": (0.5, 4.0, 30.0)}


def rows(count=25):
    x = torch.stack([torch.randint(0, k, (count,)) for k in SIZES], -1)
    x[:, 3] = x[:, 0]
    return x


@pytest.mark.parametrize("strength", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("name", table_models(SIZES))
def test_leave_one_out_is_the_ratio_of_evidences(name, strength):
    x = rows()
    model = table_models(SIZES, strength)[name].with_states(SIZES)
    scores = model.leave_one_out(x)
    for i in (0, 7, 24):
        rest = x[torch.arange(len(x)) != i]
        assert scores[i].item() == pytest.approx((model.log_evidence(x) - model.log_evidence(rest)).item(), abs=1e-9)
        if name != "Chow-Liu tree":  # `fit` picks one tree, the score is over all of them
            assert scores[i].item() == pytest.approx(model.fit(rest.double()).log_prob(x[i]).item(), abs=1e-6)


@pytest.mark.parametrize("strength", PRIORS.values(), ids=PRIORS)
def test_evidence_is_the_product_of_one_step_predictions(strength):
    x = rows(12)
    for name, model in table_models(SIZES, strength).items():
        if name == "Chow-Liu tree":
            continue
        model = model.with_states(SIZES)
        steps = [model.fit(x[:i].double()).log_prob(x[i]).item() for i in range(1, len(x))]
        assert model.log_evidence(x).item() == pytest.approx(model.log_evidence(x[:1]).item() + sum(steps), abs=1e-5), name


@pytest.mark.parametrize("strength", [PRIORS["one"], pytest.param(PRIORS["several"], marks=pytest.mark.slow)], ids=PRIORS)
def test_evidences_of_all_data_sets_sum_to_one(strength):
    """By brute force: all 64 data sets of three rows over two variables with an order among rows, and 144 of two rows over three."""
    for sizes, count in (((2, 2), 3), ((2, 3, 2), 2)):
        row = torch.cartesian_prod(*map(torch.arange, sizes))
        every = [row[list(which)] for which in itertools.product(range(len(row)), repeat=count)]
        models = table_models(sizes, strength)
        if strength == 1.0:
            models |= {"K2 chain": TableModel(MarkovChain, concentration=0.7), "K2 table": TableModel(FullTable, concentration=0.7)}
        for name, model in models.items():
            total = sum(model.with_states(sizes).log_evidence(x).exp().item() for x in every)
            assert total == pytest.approx(1, abs=1e-9), name


def test_scores_of_other_code():
    """pgmpy's K2 and BDeu scores of a Bayes net."""
    pandas = pytest.importorskip("pandas")
    estimators = pytest.importorskip("pgmpy.estimators")
    from pgmpy.base import DAG

    x = rows(40)
    parents = ((), (0,), (0, 1), (2,))
    dag = DAG()
    dag.add_nodes_from(range(4))
    dag.add_edges_from([(p, v) for v, ps in enumerate(parents) for p in ps])
    frame, states = pandas.DataFrame(x.numpy()), {v: list(range(k)) for v, k in enumerate(SIZES)}
    net = {"num_states": SIZES, "structure": {"parents": parents}}
    k2 = TableModel(BayesNet, concentration=1.0, **net).log_evidence(x).item()
    assert k2 == pytest.approx(estimators.K2(frame, state_names=states).score(dag), rel=1e-9)
    bdeu = TableModel(BayesNet, 3.0, **net).log_evidence(x).item()
    assert bdeu == pytest.approx(estimators.BDeu(frame, equivalent_sample_size=3.0, state_names=states).score(dag), rel=1e-9)


def test_equal_classes_have_equal_evidence():
    """Under one equivalent sample size: a complete net in any order is a full table; a chain is its mirror image."""
    x = rows()
    full = TableModel(FullTable, 2.0).with_states(SIZES).log_evidence(x).item()
    for order in itertools.permutations(range(4)):
        assert chain_over(order, 4, 2.0).with_states(SIZES).log_evidence(x).item() == pytest.approx(full)
        mirror = chain_over(order[::-1], 1, 2.0).with_states(SIZES).log_evidence(x)
        assert chain_over(order, 1, 2.0).with_states(SIZES).log_evidence(x).item() == pytest.approx(mirror.item())
    per_cell = TableModel(FullTable, concentration=1.0).with_states(SIZES).log_evidence(x).item()
    net = TableModel(BayesNet, concentration=1.0, structure={"parents": ((), (0,), (0, 1), (0, 1, 2))})
    assert abs(net.with_states(SIZES).log_evidence(x).item() - per_cell) > 0.1  # K2 has no such property


def test_evidence_of_trees_is_the_mean_over_all_of_them():
    """All 125 trees on 5 variables, listed by their Pruefer codes."""
    x = torch.cat([rows(), torch.randint(0, 2, (25, 1))], 1)
    sizes = (*SIZES, 2)
    scores = []
    for code in itertools.product(range(5), repeat=3):
        parents = tree_of(code)
        scores.append(TableModel(BayesNet, 1.5, num_states=sizes, structure={"parents": parents}).log_evidence(x))
    expected = torch.stack(scores).logsumexp(0).item() - math.log(125)
    assert TableModel(ChowLiuTree, 1.5, num_states=sizes).log_evidence(x).item() == pytest.approx(expected)


def tree_of(code):
    """Parents of the tree of a Pruefer code, rooted at 0."""
    n, code = len(code) + 2, list(code)
    degree = [1 + code.count(v) for v in range(n)]
    edges = []
    for v in code:
        leaf = degree.index(1)
        edges.append((leaf, v))
        degree[leaf] -= 1
        degree[v] -= 1
    edges.append(tuple(v for v in range(n) if degree[v] == 1))
    parents, seen = [()] * n, [0]
    for u in seen:
        for a, b in edges:
            v = b if a == u else a if b == u else None
            if v is not None and v not in seen:
                parents[v] = (u,)
                seen.append(v)
    return tuple(parents)


def test_several_strengths_are_averaged():
    x = rows()
    model = TableModel(FullTable, (1.0, 50.0), num_states=SIZES)
    each = [TableModel(FullTable, s, num_states=SIZES).log_evidence(x) for s in (1.0, 50.0)]
    assert model.log_evidence(x).item() == pytest.approx(torch.stack(each).logsumexp(0).item() - math.log(2))
    assert isinstance(model.fit(x), Mixture)
    with pytest.raises(ValueError, match="one strength"):
        model.posterior(x)


def test_bad_recipes_are_named():
    x = torch.randint(0, 2, (20, 3))
    with pytest.raises(ValueError, match="a table class"):
        TableModel(FVSBN)
    with pytest.raises(ValueError, match="strength of a Dirichlet prior must be positive"):
        TableModel(FullTable, 0.0)
    with pytest.raises(ValueError, match="trees need equivalent_sample_size"):
        TableModel(ChowLiuTree, concentration=1.0)
    with pytest.raises(ValueError, match="permutation"):
        chain_over((0, 0, 1))
    with pytest.raises(ValueError, match="net: the parents must form a graph"):
        fit_recipe("net", TableModel(BayesNet, structure={"parents": ((1,), (0,), ())}), x)
    with pytest.raises(ValueError, match="odd must be a recipe"):
        fit_recipe("odd", 3, x)
    with pytest.raises(ValueError, match="wide must make a joint over rows of shape"):
        fit_recipe("wide", lambda x: FullyIndependent(torch.zeros(5, 2)), x)
    with pytest.raises(ValueError, match="draws must make one joint"):
        fit_recipe("draws", lambda x: FullyIndependent(torch.zeros(7, 3, 2)), x)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")  # Lightning's
def test_a_neural_model_is_fitted():
    x = torch.randint(0, 2, (80, 3)).float()
    model = NeuralModel(lambda: FVSBN(3), {"epochs": 2, "batch_size": 40})
    joint = model.fit(x)
    assert joint.log_prob(x).shape == (80,)
    assert not joint.log_prob(x).requires_grad
    assert model.num_parameters(()) == 6
    torch.testing.assert_close(joint.log_prob(x), model.fit(x).log_prob(x))


def test_a_tree_counts_the_parameters_of_the_one_picked():
    x = rows(200)  # x_3 copies x_0, all else is free
    tree = ChowLiuTree.from_data(x, num_states=SIZES)
    assert TableModel(ChowLiuTree, num_states=SIZES).parameters_of(x) == tree.num_parameters
    odd = torch.stack([x[:, 1], x[:, 0], x[:, 1], x[:, 2]], -1)
    tree = TableModel(ChowLiuTree)
    assert tree.parameters_of(odd) != tree.num_parameters((3, 2, 3, 2))  # 3 states stand beside 3, not between
    assert TableModel(MarkovChain).parameters_of(x) == TableModel(MarkovChain).num_parameters(SIZES)


def test_chains_over_orders():
    x = MarkovChain(torch.zeros(2), 2 * torch.eye(2).expand(3, 2, 2)).sample((50,))
    assert chain_over((0, 1, 2, 3), 2).log_evidence(x).item() == pytest.approx(
        TableModel(MarkovChain, structure={"order": 2}).log_evidence(x).item())


def test_a_chain_of_order_two_begins_with_one_table():
    """With a concentration per cell its first two variables share a Dirichlet over their 4 joint states; a net has one for each table."""
    x = torch.tensor([[0, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]])
    last = TableModel(BayesNet, concentration=0.7, num_states=2, structure={"parents": ((), (), (0, 1))}).log_evidence(x)
    last = last - TableModel(FullyIndependent, concentration=0.7, num_states=2).log_evidence(x[:, :2])
    pair = TableModel(FullTable, concentration=0.7, num_states=2).log_evidence(x[:, :2])
    chain = TableModel(MarkovChain, concentration=0.7, num_states=2, structure={"order": 2}).log_evidence(x)
    assert chain.item() == pytest.approx((pair + last).item())
    net = TableModel(BayesNet, concentration=0.7, num_states=2, structure={"parents": ((), (0,), (0, 1))}).log_evidence(x)
    assert abs(chain.item() - net.item()) > 1e-3


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")  # Lightning's
def test_a_neural_model_knows_its_states():
    x = torch.stack([torch.randint(0, 2, (60,)), torch.randint(0, 4, (60,))], -1).float()
    model = NeuralModel(lambda: FVSBN(2, Categorical(4)), {"epochs": 2}, num_states=(2, 4))
    assert model.num_parameters(()) == 1 + 3 * 2
    assert NeuralModel(lambda: FVSBN(2, Categorical(4)), num_states=(4, 4)).num_parameters(()) == FVSBN(2, Categorical(4)).num_parameters
    joint = model.fit(x)
    assert joint.num_states == (2, 4)
    assert joint.log_prob(torch.cartesian_prod(torch.arange(2.0), torch.arange(4.0))).exp().sum().item() == pytest.approx(1, abs=1e-5)
    turned = NeuralModel(lambda: FVSBN(2, Categorical(4), order=[1, 0]), {"epochs": 1}, num_states=(2, 4)).fit(x)
    assert turned.order.tolist() == [1, 0]
    assert turned.num_states == (2, 4)


def test_one_number_of_parameters_everywhere():
    """The recipe, the joint that it fits (averaged over strengths), a table of recipes, one of fitted joints, the formula."""
    sizes = (2, 3, 2, 2, 2)
    x = torch.stack([torch.randint(0, k, (40,)) for k in sizes], -1)
    for name, model in table_models(sizes, (0.5, 1.0, 2.0, 4.0)).items():
        model = model.with_states(sizes)
        fitted = model.fit(x)
        assert name == "full table" or isinstance(fitted, Averaged), name  # of the full table one strength may carry all the weight
        picked = fitted.joints[0].parents if name == "Chow-Liu tree" else None
        by_hand = sum((k - 1) * math.prod(sizes[u] for u in p) for k, p in zip(sizes, picked, strict=True)) if picked else model.num_parameters(sizes)
        by_recipe, by_joint = compare({"m": model}, x)["m"].parameters, compare({"m": fitted}, x)["m"].parameters
        assert fitted.num_parameters == by_recipe == by_joint == model.parameters_of(x) == by_hand, name
    chain = table_models((2,) * 16, (1.0, 4.0))["Markov chain 3"]
    rows = torch.randint(0, 2, (200, 16))
    assert chain.fit(rows).num_parameters == chain.num_parameters((2,) * 16) == 2**3 - 1 + 13 * 2**3 == 111


def test_draws_of_weights_are_counted_once():
    posterior = Bayesian(FVSBN(3)).fit(torch.randint(0, 2, (9, 3)).float(), method="mean-field", num_draws=4, num_chains=1, steps=5, progress=False)
    assert posterior.predictive().num_parameters == posterior.num_parameters == FVSBN(3).num_parameters == 6
    orders = OverOrders(OrderlessNADE(3, 4), 5)
    assert orders().num_parameters == orders.num_parameters


def test_the_evidences_of_all_strengths_count_the_pairs_of_a_tree_once(monkeypatch):
    """300 columns have 44,850 pairs: counted by tiles, once for all strengths, not pair by pair and strength by strength."""
    tiles, blocks = [], []
    count, one_hot = chow_liu.block_counts, chow_liu._pair_counts
    monkeypatch.setattr(chow_liu, "block_counts", lambda block, *rest: blocks.append(block) or count(block, *rest))
    monkeypatch.setattr(chow_liu, "_pair_counts", lambda *rest: tiles.append(rest) or one_hot(*rest))
    model = TableModel(ChowLiuTree, (0.25, 1.0, 4.0), num_states=2)
    model.log_evidences(torch.randint(0, 2, (25, 30), generator=torch.Generator().manual_seed(0)))
    assert len(tiles) == 1
    assert len(blocks) == 3 * 30  # of single columns


def test_a_unit_of_the_comparison_finds_its_evidences_once(monkeypatch, tmp_path):
    calls = []
    find = TableModel.log_evidences
    monkeypatch.setattr(TableModel, "log_evidences", lambda self, x: calls.append(x) or find(self, x))
    x = torch.randint(0, 2, (40, 4), generator=torch.Generator().manual_seed(0)).double()
    plan = Plan("coins", x[:30], x[30:], sizes=(25,), models=("Chow-Liu tree",))
    unit, = run(plan, Results.open(tmp_path / "results.json", {}))
    assert len(calls) == 1
    recipe = plan.recipe("Chow-Liu tree", 25)
    assert unit["log_evidence"] == pytest.approx(recipe.log_evidence(plan.rows(25)).item(), rel=1e-12)
    assert unit["nats"] == pytest.approx(-recipe.fit(plan.rows(25)).log_prob(plan.test).mean().item(), rel=1e-6)


@pytest.mark.parametrize("tile", [1, 40, 2**22])
def test_evidences_of_trees_by_tiles_are_those_pair_by_pair(monkeypatch, tile):
    monkeypatch.setattr(chow_liu, "TURN", tile)
    monkeypatch.setattr("pyro_ar.budget.TURN", tile)
    sizes, strengths = (2, 3, 2, 4, 3), (0.5, 16.0)
    generator = torch.Generator().manual_seed(1)
    x = torch.stack([torch.randint(0, k, (23,), generator=generator) for k in sizes], -1)
    for s, found in zip(strengths, chow_liu.evidences_of_trees(x, sizes, strengths), strict=True):
        def evidence(*scope, s=s):
            parents = tuple((v - 1,) if v and len(scope) == 2 else () for v in range(len(scope)))
            return BayesNet.log_evidence(x[:, list(scope)], equivalent_sample_size=s, num_states=[sizes[v] for v in scope], parents=parents)
        laplacian = torch.zeros(5, 5, dtype=torch.float64)
        for i in range(5):
            for j in range(i):
                weight = (evidence(j, i) - evidence(j) - evidence(i)).exp()
                laplacian[i, j] = laplacian[j, i] = -weight
                laplacian[i, i] += weight
                laplacian[j, j] += weight
        wanted = sum(evidence(v) for v in range(5)) + laplacian[1:, 1:].logdet() - 3 * math.log(5)
        assert found == pytest.approx(wanted.item(), rel=1e-10)
