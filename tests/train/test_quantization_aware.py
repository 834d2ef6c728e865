import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tensorpress.errors import InvalidArgumentError
from tensorpress.train import StraightThrough, TrainConfig, fit


def tied():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return nn.Sequential(first, second)


def test_values_are_quantized_inside_the_block_and_restored_bit_for_bit():
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    address = model.weight.data_ptr()
    with StraightThrough({"weight": torch.sign})(model):
        assert torch.equal(model.weight, before.sign())
    assert torch.equal(model.weight, before)
    assert model.weight.data_ptr() == address


def test_an_in_place_quantizer_cannot_reach_the_latent_values():
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    with StraightThrough({"weight": torch.Tensor.round_})(model):
        assert torch.equal(model.weight, before.round())
    assert torch.equal(model.weight, before)


def test_shared_parameter_is_quantized_once():
    model, calls = tied(), []

    def quantizer(values):
        calls.append(values)
        return values.round() + 1

    before = model[0].weight.detach().clone()
    with StraightThrough({"0.weight": quantizer, "1.weight": quantizer})(model):
        assert torch.equal(model[1].weight, before.round() + 1)
    assert len(calls) == 1
    assert torch.equal(model[1].weight, before)


def test_second_name_of_a_shared_parameter_is_known():
    model = tied()
    with StraightThrough({"1.weight": torch.zeros_like})(model):
        assert not model[0].weight.any()


def test_restores_after_an_exception_in_the_block():
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    with pytest.raises(KeyError), StraightThrough({"weight": torch.sign})(model):
        raise KeyError
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("bad", [lambda v: v[0], lambda v: v.double()])
def test_restores_when_a_later_quantizer_is_wrong(bad):
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    with (
        pytest.raises(InvalidArgumentError, match="quantizer of 'bias' must return"),
        StraightThrough({"weight": torch.sign, "bias": bad})(model),
    ):
        pass
    assert torch.equal(model.weight, before)


def test_an_unknown_parameter_name_is_refused():
    with (
        pytest.raises(InvalidArgumentError, match=r"unknown parameter 'wieght'.*'weight'"),
        StraightThrough({"wieght": torch.sign})(nn.Linear(2, 2)),
    ):
        pass


def test_gradient_at_the_quantized_point_moves_the_latent_one():
    model = nn.Linear(1, 2, bias=False)
    latent = torch.tensor([[0.4], [-1.3]])
    model.weight.data.copy_(latent)
    quantized = nn.Linear(1, 2, bias=False)
    quantized.weight.data.copy_(latent.sign())
    batch = (torch.tensor([[1.5]]), torch.tensor([0]))
    nn.functional.cross_entropy(quantized(batch[0]), batch[1]).backward()
    config = TrainConfig(epochs=1, lr=0.1, optimizer="sgd")
    fit(model, [batch], config, weights=StraightThrough({"weight": torch.sign}))
    torch.testing.assert_close(model.weight.detach(), latent - 0.1 * quantized.weight.grad)


def test_factors_of_a_parametrized_weight():
    class Doubled(nn.Module):
        def forward(self, factor):
            return 2 * factor

    model = nn.Linear(3, 2)
    parametrize.register_parametrization(model, "weight", Doubled(), unsafe=True)
    factor = model.parametrizations.weight.original.detach().clone()
    with StraightThrough({"parametrizations.weight.original": torch.round})(model):
        assert torch.equal(model.weight, 2 * factor.round())
    assert torch.equal(model.weight, 2 * factor)
