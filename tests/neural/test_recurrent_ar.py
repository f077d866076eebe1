"""The recurrent net: fused and plain passes, torch's own modules, and text."""

import gzip
import itertools

import pytest
import torch

from torch import nn
from torch.testing import assert_close

import pyro_ar as par

from pyro_ar import outputs
from pyro_ar.data import Alphabet
from pyro_ar.neural import RecurrentARNet
from pyro_ar.neural.recurrent_ar import fused_pass, plain_pass
from pyro_ar.testing.nets import _prepared

CELLS = [("gru", 1), ("gru", 2), ("lstm", 1), ("lstm", 3)]


def flat(found):
    out, after = found
    return torch.cat([out.flatten(), *(t.flatten() for t in after)])


@pytest.mark.parametrize(("cell", "layers"), CELLS)
def test_the_fused_pass_is_the_plain_one(cell, layers) -> None:
    net, _, _ = _prepared(RecurrentARNet(5, outputs.Bernoulli(), hidden=3, cell=cell, layers=layers, width=2))
    tokens = torch.randn(4, 5, 2).double().requires_grad_()
    before = [torch.randn_like(t).requires_grad_() for t in net.memory(4)]
    wanted = [tokens, *before, *itertools.chain(*net._weights())]
    found = [form(tokens, before, net._weights()) for form in (fused_pass, plain_pass)]
    assert [t.shape for t in found[0][1]] == [t.shape for t in found[1][1]] == [(4, layers, 3)] * len(before)
    assert_close(*map(flat, found))
    weigh = torch.randn_like(flat(found[0]))
    assert_close(*(torch.autograd.grad((flat(f) * weigh).sum(), wanted) for f in found))


@pytest.mark.parametrize(("cell", "layers"), CELLS)
def test_it_is_torchs_module_over_tokens_of_last_value_and_place(cell, layers) -> None:
    net, x, known = _prepared(RecurrentARNet(4, outputs.Normal(), 2, hidden=3, cell=cell, layers=layers, width=2))
    module = (nn.GRU if cell == "gru" else nn.LSTM)(2, 3, layers, batch_first=True).double()
    names = {"weight_ih_l": net.input_weight, "weight_hh_l": net.hidden_weight, "bias_ih_l": net.input_bias, "bias_hh_l": net.hidden_bias}
    module.load_state_dict({f"{name}{k}": w for name, each in names.items() for k, w in enumerate(each)})
    tokens = net.place + (known["context"] @ net.context_weight).unsqueeze(1)
    last = torch.cat((torch.zeros(5, 1).double(), x[:, :-1]), 1).unsqueeze(-1)
    with torch.no_grad():
        expected = module(tokens + last @ net.value_weight)[0] @ net.head_weight + net.head_bias
        assert_close(net(x, **known), expected)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_of_weights_are_answered_as_one_by_one(cell, dtype) -> None:
    """The draws run in plain operations, a single one in torch's kernels."""
    family = par.RecurrentAR(5, 4, cell=cell, layers=2).to(dtype)
    draws = {name: p.detach() + torch.randn(3, *p.shape, dtype=dtype) for name, p in family.net.named_parameters()}
    joint = family()
    x = torch.randint(0, 2, (6, 1, 5)).to(dtype)
    many = joint.with_tensors(draws).log_prob(x)
    assert many.shape == (6, 3)
    for k in range(3):
        one = joint.with_tensors({name: t[k] for name, t in draws.items()}).log_prob(x[:, 0])
        assert_close(many[:, k], one, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)


@pytest.mark.parametrize("options", [{"hidden": 0}, {"cell": "rnn"}, {"layers": 0}, {"width": 0}])
def test_bad_sizes_are_refused(options) -> None:
    with pytest.raises(ValueError, match=r"hidden|cell|layers|width"):
        par.RecurrentAR(4, **options)


# Text.


def test_without_places_a_model_takes_any_length() -> None:
    family = par.RecurrentAR(6, 5, outputs.Categorical(3, "one-hot"), cell="lstm", places=False).double().eval()
    longer = family.of_length(9)
    assert longer.num_parameters == family.num_parameters
    assert not longer.training
    x = torch.randint(0, 3, (4, 9))
    assert_close(longer().conditional_log_prob(x)[:, :6], family().conditional_log_prob(x[:, :6]))
    assert not torch.allclose(family().conditional_log_prob(x[:, :6])[:, 0], family().conditional_log_prob(x[:, 1:7])[:, 1])
    with torch.no_grad():
        longer.net.head_bias += 1  # its own weights
    assert_close(family.net.head_bias, torch.zeros_like(family.net.head_bias))
    with pytest.raises(ValueError, match="places=False"):
        par.RecurrentAR(6, 5).of_length(9)
    with pytest.raises(ValueError, match="order"):
        par.RecurrentAR(6, 5, order="random", places=False).of_length(9)
    mixed = outputs.PerVariable([outputs.Bernoulli(), outputs.Normal()])
    with pytest.raises(ValueError, match="need places"):
        par.RecurrentAR(2, 5, mixed, places=False)


def test_text_in_text_out() -> None:
    text = "so it goes on and on; " * 4
    letters = Alphabet.of(text)
    torch.manual_seed(0)
    family = par.RecurrentAR(20, 24, outputs.Categorical(len(letters), "one-hot"), places=False)
    rows, adam = letters.windows(text, 20, 1)[:22], torch.optim.Adam(family.parameters(), 0.03)
    for _ in range(100):
        adam.zero_grad()
        family.training_log_prob(rows).mean().neg().backward()
        adam.step()
    start = "so it goes on an"
    whole = torch.cat((letters.encode(start), torch.zeros(50, dtype=torch.long)))
    joint = family.of_length(66)()
    told = letters.decode(joint.given(whole, torch.arange(66) < len(start)).sample())
    assert told == text[:66]
    # What is left to learn is where in the line a row begins.
    assert -joint.log_prob(letters.encode(text[:66])) < 6


def test_alphabets() -> None:
    letters = Alphabet.of("hello")
    assert letters == Alphabet("ehlo")
    assert letters != Alphabet("eho")
    assert len(letters) == 4
    assert letters.decode(letters.encode("hole")) == "hole"
    assert letters.decode(torch.zeros(0)) == ""
    assert [letters.decode(row) for row in letters.windows("hellohello", 4, 3)] == ["hell", "lohe", "ello"]
    for broken, match in [(lambda: letters.encode("help"), "'p'|p"), (lambda: letters.decode(torch.tensor([4])), "0 to 3"),
                          (lambda: letters.decode(torch.tensor([0.5])), "0 to 3"), (lambda: letters.decode(torch.zeros(2, 2)), "one row"),
                          (lambda: letters.windows("he", 3), "3 characters"), (lambda: letters.windows("hello", 0), "1 or more"),
                          (lambda: Alphabet("aa"), "once"), (lambda: Alphabet(""), "wants a text")]:
        with pytest.raises(ValueError, match=match):
            broken()


@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz"])
def test_texts_are_read(name, tmp_path) -> None:
    path = tmp_path / name
    content = "naïve\n".encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert par.data.load_text(path) == "naïve\n"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        par.data.load_text(path)
