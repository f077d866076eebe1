import math
import re
import time

import pytest

from pyro_ar.elliptical import Gaussian
from pyro_ar.experiments.parameters import Count, parameter_table, parse_shape
from pyro_ar.latent import LatentTree
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.neural.made import MADE
from pyro_ar.neural.nade import NADE
from pyro_ar.neural.orderless_nade import OrderlessNADE
from pyro_ar.outputs import Bernoulli, Categorical, PerVariable
from pyro_ar.tables import ChowLiuTree, FullTable, FullyIndependent, MarkovChain


def counts(*arguments):
    return {row.name: row.count for row in parameter_table(*arguments)}


@pytest.mark.parametrize(("n", "states"), [(1, 2), (2, 3), (5, 2), (4, 17), (3, 256)])
def test_formulas_agree_with_the_joints(n, states):
    table, sizes = counts((n,), states), [states] * n
    assert table["full table"].value == FullTable.count_parameters(sizes)
    assert table["independent"].value == FullyIndependent.count_parameters(sizes)
    assert table["Markov chain"].value == MarkovChain.count_parameters(sizes)
    if n >= 2:
        assert table["Markov chain of order 2"].value == MarkovChain.count_parameters(sizes, order=2)
    assert table["Chow-Liu tree"].value == ChowLiuTree.count_parameters(sizes)
    assert table["latent tree, H = 16"].value == LatentTree.count_parameters(n, 16, PerVariable.of_states(sizes))
    assert table["Gaussian"].value == Gaussian.count_parameters(n)


@pytest.mark.parametrize(("n", "states"), [(1, 2), (6, 2), (784, 2), (5, 3), (64, 17)])
def test_neural_counts_are_of_weights_that_are_used(n, states):
    table = counts((n,), states)
    output = Bernoulli() if states == 2 else Categorical(states)
    for name, family in (("FVSBN (linear logits)", FVSBN), ("NADE, h = 500", NADE), ("MADE, h = 500", MADE), ("OrderlessNADE, h = 500", OrderlessNADE)):
        options = {} if family is FVSBN else {"hidden": 500}
        assert table[name].value == family.count_parameters(n, output=output, **options), name


@pytest.mark.parametrize(("n", "K"), [(1, 2), (6, 2), (784, 2), (5, 3), (64, 17)])
def test_printed_formulas_of_the_neural_families(n, K):
    rows = {row.name: row for row in parameter_table((n,), K)}
    for name in ("FVSBN (linear logits)", "NADE, h = 500", "OrderlessNADE, h = 500"):
        formula = re.sub(r"(?<=[\dnh)]) ?(?=[nh(])", "*", rows[name].formula).replace("^", "**")
        assert eval(formula, {"n": n, "h": 500, "K": K}) == rows[name].count.value, formula
    about = (n * 500 + n) * (K - 1) + 500
    assert rows["MADE, h = 500"].count.value == pytest.approx(about, rel=0.01 if n > 1 else 0.6)


def test_the_textbook():
    table = counts((28, 28), 2, 10)
    assert str(table["full table"]) == "2^784 - 1 (~10^236)"
    assert table["independent"].value == 784
    assert table["Markov chain"].value == 2 * 784 - 1
    assert table["FVSBN (linear logits)"].value == 784 * 785 // 2
    assert table["logistic regression"].value == 10 * 784 + 10
    assert table["Gaussian discriminant"].value == 9 + 10 * 784 + 10 * 784 * 785 // 2
    assert str(table["multinomial regression"]) == "784 x 2^784 (~10^239)"
    assert counts((3,), 256)["full table"].value == 256**3 - 1


def test_small_image_to_image_is_r_c_2_to_the_hw():
    assert counts((2, 3))["multinomial regression"].value == 6 * 2**6
    assert counts((2, 3), 4)["multinomial regression"].value == 6 * 3 * 4**6


def test_huge_shapes_allocate_nothing():
    start = time.perf_counter()
    table = counts((100_000, 100_000, 3), 256, 1000)
    assert time.perf_counter() - start < 1
    assert table["full table"].value is None
    assert table["full table"].log10 == pytest.approx(3e10 * math.log10(256))
    assert str(table["full table"]) == "256^30000000000 - 1 (~10^72,247,198,959)"


@pytest.mark.parametrize(("count", "text"), [
    (Count(12345), "12,345"), (Count(1, 2, 10, -1), "1,023"), (Count(10**20), "~10^20"), (Count(0), "0"),
    (Count(3, 2, 100, 5), "3 x 2^100 + 5 (~10^31)"),
])
def test_counts_read_well(count, text):
    assert str(count) == text


@pytest.mark.parametrize(("text", "shape"), [("28x28", (28, 28)), ("784", (784,)), ("3X32x32", (3, 32, 32)), ("2, 3", (2, 3))])
def test_shapes(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "x", "0x3", "-1", "3.5", "3x", "a", "9" * 13])
def test_bad_shapes(text):
    with pytest.raises(ValueError, match="shape must be positive numbers such as 28x28"):
        parse_shape(text)


def test_bad_numbers():
    with pytest.raises(ValueError, match="2 states or more"):
        parameter_table((2,), 1)
    with pytest.raises(ValueError, match="2 classes or more"):
        parameter_table((2,), 2, 1)
    with pytest.raises(ValueError, match="positive"):
        parameter_table((), 2)
