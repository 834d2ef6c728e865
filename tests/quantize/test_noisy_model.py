import copy

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize import RateModel
from tensorpress.quantize.laplace_prior import laplace_bits


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def pressed(scheme: str) -> nn.Module:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(24, 30), nn.ReLU(), nn.Linear(30, 24))
    layers = {
        "0": {"modes": [6, 5, 6, 4], "ranks": 3},
        "2": {"modes": [6, 4, 6, 5], "ranks": 3},
    }
    return tp.press(dense, tp.plan(dense, scheme=scheme, overrides=layers), init="kaiming")


def rounded(rated: RateModel, model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    parameters = dict(twin.named_parameters())
    with torch.no_grad():
        for name, quantizer in rated.quantizers().items():
            parameters[name].copy_(quantizer(parameters[name]))
    return twin


@pytest.mark.parametrize("make", [small, lambda: pressed("ada_tucker")])
def test_in_evaluation_it_is_the_model_with_rounded_parameters(make):
    model = make()
    rated = RateModel(model, step=0.3).eval()
    inputs = torch.randn(7, next(m.in_features for m in model if isinstance(m, nn.Linear)))
    expected = rounded(rated, model)(inputs)
    torch.testing.assert_close(rated(inputs), expected, rtol=1e-5, atol=1e-5)


def test_rounding_for_good_gives_the_same_model_without_the_wrapper():
    model = small()
    rated = RateModel(model, step=0.4).eval()
    inputs = torch.randn(7, 6)
    before = rated(inputs)
    quantizers = rated.round_()
    torch.testing.assert_close(model(inputs), before, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(quantizers[n](p), p) for n, p in model.named_parameters())


def test_bits_are_those_of_the_rounded_values():
    model = small()
    rated = RateModel(model, step=0.5).eval()
    rated(torch.randn(1, 6))
    expected = sum(
        laplace_bits(rated.quantizers()[name].symbols(p).float(), scale).sum()
        for (name, p), scale in zip(model.named_parameters(), rated.priors.scales, strict=True)
    )
    torch.testing.assert_close(rated.bits, expected, rtol=1e-4, atol=1e-3)


def test_noise_stays_within_half_a_step_and_changes_from_call_to_call():
    model = nn.Linear(1, 500, bias=False)
    rated = RateModel(model, step=0.5)
    first, second = (rated(torch.ones(1, 1)) for _ in range(2))
    difference = (first - model.weight.T).abs() / rated.steps.exp()
    assert 0.45 < difference.max().item() <= 0.5 + 1e-5
    assert not torch.equal(first, second)


def test_hard_training_rounds_and_gradients_pass_straight_through():
    model = nn.Linear(3, 2, bias=False)
    rated = RateModel(model, step=0.5)
    rated.hard = True
    output = rated(torch.eye(3))
    torch.testing.assert_close(output, rounded(rated, model)(torch.eye(3)))
    output.sum().backward()
    torch.testing.assert_close(model.weight.grad, torch.ones(2, 3))
    assert rated.steps.grad is not None


def test_a_shared_core_is_quantized_and_paid_for_once():
    model = pressed("scada_tucker")
    rated = RateModel(model, step=0.3)
    cores = [name for name in rated.names if name.endswith("original0")]
    assert len(cores) == 1
    rated(torch.randn(2, 24))
    rated.bits.backward()
    assert model[0].parametrizations.weight.original0.grad is not None


def test_frozen_parameters_are_left_alone():
    model = small()
    model[0].weight.requires_grad_(False)
    rated = RateModel(model, step=0.3)
    assert "0.weight" not in rated.names
    before = model[0].weight.clone()
    rated.round_()
    assert torch.equal(model[0].weight, before)


def test_statistics_of_norms_are_frozen():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    rated = RateModel(model, step=0.3).train()
    before = model[1].running_mean.clone()
    rated(torch.randn(8, 3))
    assert torch.equal(model[1].running_mean, before)
    assert model[0].training


def test_a_model_of_zeros_has_steps():
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.bias)
    rated = RateModel(model, step=0.1).eval()
    assert torch.isfinite(rated(torch.ones(1, 3))).all()
    assert rated.quantizers()["bias"].step > 0


def test_models_without_finite_trainable_parameters_are_refused():
    model = small().requires_grad_(False)
    with pytest.raises(InvalidArgumentError, match="no parameter that requires a gradient"):
        RateModel(model, step=0.1)
    broken = small()
    nn.init.constant_(broken[2].bias, float("nan"))
    with pytest.raises(InvalidArgumentError, match=r"'2\.bias' has NaN"):
        RateModel(broken, step=0.1)
