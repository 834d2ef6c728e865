import logging
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from tensorpress import LayerPlan, Plan, load, plan, press, save, unpress
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure import count_params
from tensorpress.models.zoo import build
from tensorpress.planning import plan_from_model
from tensorpress.press.zero_ranks import drop_zero_ranks
from tensorpress.schemes.canonical_kernel import to_canonical
from tensorpress.schemes.chain_builder import PressedLayer
from tensorpress.schemes.channel_svd import ChannelSVD
from tensorpress.schemes.layer_spec import read_spec, weight_spec
from tensorpress.schemes.parametrization import stored_factors
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.pressed_layer import layer_factors
from tensorpress.schemes.registry import rank_schemes, scheme


def seeded(layer: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.double()


def outputs(model: nn.Module, layer: nn.Module) -> torch.Tensor:
    """What a model makes of examples that fit a dense layer."""
    generator = torch.Generator().manual_seed(3)
    if isinstance(layer, nn.Embedding):
        x = torch.arange(layer.num_embeddings)
    elif isinstance(layer, nn.Linear):
        x = torch.randn(5, layer.in_features, generator=generator).double()
    else:
        sizes = (7,) * len(layer.kernel_size)
        x = torch.randn(2, layer.in_channels, *sizes, generator=generator).double()
    with torch.no_grad():
        return model(x)


def check(model: nn.Module, layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """Drop what is zero, compare outputs and parameters; return the new ranks."""
    expected, params = outputs(model, layer), count_params(model)
    before = {planned.name: planned.ranks for planned in plan_from_model(model).layers}
    result = drop_zero_ranks(model)
    torch.testing.assert_close(outputs(model, layer), expected, rtol=1e-9, atol=1e-9)
    after = {planned.name: planned.ranks for planned in plan_from_model(model).layers}
    assert result == {name: ranks for name, ranks in after.items() if ranks != before[name]}
    assert (count_params(model) < params) == bool(result)
    assert drop_zero_ranks(model) == {}
    return result


CHAINS = [
    ("channel_svd", nn.Conv2d(6, 8, 3, stride=2), 5),
    ("channel_svd", nn.Conv2d(12, 16, 3, groups=2, bias=False), 5),
    ("channel_svd", nn.Linear(12, 9), 5),
    ("channel_svd", nn.Embedding(20, 9, padding_idx=3), 5),
    ("tucker1_in", nn.Conv1d(8, 6, 3), 5),
    ("spatial_svd", nn.Conv2d(6, 8, 3, padding=1), 5),
    ("spatial_svd_horizontal", nn.ConvTranspose2d(6, 8, 3), 5),
    ("spatial_svd", nn.Conv3d(6, 8, 3, groups=2), 5),
    ("cp", nn.Conv2d(6, 8, 3), 5),
    ("cp", nn.ConvTranspose1d(8, 12, 3, groups=2), 4),
]


def kernel(pressed: PressedLayer, number: int) -> torch.Tensor:
    """A view (groups, out, in, *kernel) of a layer of a chain."""
    part, groups = pressed[number], pressed.stages[number].groups
    return to_canonical(part.weight.data, groups, flipped=read_spec(part).flipped)


@pytest.mark.parametrize(("scheme", "dense", "rank"), CHAINS, ids=str)
@pytest.mark.parametrize("what", ["written", "read"])
def test_a_channel_that_is_not_written_or_not_read_goes(
    scheme: str, dense: nn.Module, rank: int, what: str
) -> None:
    pressed = seeded(press_layer(dense, scheme, rank))
    assert isinstance(pressed, PressedLayer)
    if what == "written":
        kernel(pressed, 0)[:, [1, 3]] = 0
    else:
        kernel(pressed, -1)[:, :, [1, 3]] = 0
    assert check(nn.Sequential(pressed), dense) == {"0": (rank - 2,)}


def test_groups_may_lose_different_channels() -> None:
    dense = nn.Conv2d(8, 12, 3, groups=2)
    pressed = seeded(press_layer(dense, "tucker2", 4))
    with torch.no_grad():
        pressed[0].weight[[0, 1, 4 + 2]] = 0  # two of the first group, one of the second
        pressed[2].weight[:6, [0, 3]] = 0
        pressed[2].weight[6:, [1, 2, 3]] = 0
    assert check(nn.Sequential(pressed), dense) == {"0": (3, 2)}


def test_what_is_left_without_use_goes_too() -> None:
    dense = nn.Conv2d(6, 8, 3)
    pressed = seeded(press_layer(dense, "tucker2", (4, 5)))
    with torch.no_grad():
        pressed[0].weight[2] = 0
        pressed[1].weight[3, [0, 1, 3]] = 0  # channel 3 of the core reads channel 2 only
    assert check(nn.Sequential(pressed), dense) == {"0": (3, 4)}


@pytest.mark.parametrize("scheme", ["channel_svd", "tucker2", "cp", "tensor_train", "tt_weight"])
def test_a_layer_of_zeros_keeps_rank_1(scheme: str) -> None:
    dense = nn.Conv2d(6, 8, 3)
    pressed = seeded(press_layer(dense, scheme, 3))
    with torch.no_grad():
        next(p for p in pressed.parameters() if p.ndim > 1).zero_()
    result = check(nn.Sequential(pressed), dense)
    assert set(result["0"]) == {1}


@pytest.mark.parametrize(
    ("scheme", "dense", "ranks"),
    [
        ("tensor_train", nn.Conv2d(6, 8, 3), (4, 4, 4)),
        ("tensor_train", nn.Conv1d(8, 8, 3, groups=2), (3, 3)),
        ("tensor_train", nn.Linear(24, 18), 4),
        ("tensor_train", nn.Embedding(30, 12, padding_idx=0), 4),
        ("tt_weight", nn.Conv2d(8, 12, 3), (4, 5)),
        ("tt_weight", nn.Linear(24, 18), 4),
        ("tt_conv", nn.Conv2d(8, 12, 3, padding=1), (4, 5)),
    ],
    ids=str,
)
def test_trains_lose_indices(scheme: str, dense: nn.Module, ranks: object) -> None:
    pressed = seeded(press_layer(dense, scheme, ranks))
    factors = [p for name, p in pressed.named_parameters() if not name.endswith("bias")]
    with torch.no_grad():
        if scheme == "tt_conv":
            factors[0][1] = 0
            factors[-1][:2] = 0
            lost = [1, 2]
        elif isinstance(pressed, PressedLayer):
            joint = pressed[-2].weight
            joint[torch.arange(len(joint)) % (len(joint) // pressed.spec.groups) == 1] = 0
            lost = [0] * (len(pressed.ranks) - 1) + [1]
        else:
            factors[0][..., 1] = 0
            lost = [1] + [0] * (len(factors) - 2)
    before = plan_from_model(nn.Sequential(pressed)).layers[0].ranks
    result = check(nn.Sequential(pressed), dense)
    assert result == {"0": tuple(r - gone for r, gone in zip(before, lost, strict=True))}


def tucker(scheme: str = "ada_tucker", **flags: bool) -> nn.Module:
    """Two layers whose weights are rebuilt from Tucker factors."""
    dense = nn.Sequential(nn.Linear(24, 12), nn.Linear(12, 24))
    layers = [
        LayerPlan(name, scheme, weight_spec(shape), (3, 3, 3), {"modes": modes, **flags})
        for name, shape, modes in (("0", (12, 24), (6, 6, 8)), ("1", (24, 12), (8, 6, 6)))
    ]
    return seeded(press(dense, Plan("ada_tucker", tuple(layers)), init="kaiming"))


def factors(model: nn.Module, name: str) -> list[nn.Parameter]:
    return list(stored_factors(model.get_submodule(name)).parameters())


def test_ranks_of_a_tucker_weight_go_by_columns_and_by_slices_of_the_core() -> None:
    model = tucker()
    with torch.no_grad():
        core, first, *_ = factors(model, "0")
        core[:, :, 2] = 0
        first[:, 0] = 0
    assert check(model, nn.Linear(24, 12)) == {"0": (2, 3, 2)}


def test_a_diagonal_core_loses_a_component_with_any_of_its_columns() -> None:
    model = tucker(diagonal=True)
    with torch.no_grad():
        factors(model, "0")[0][1] = 0
        factors(model, "1")[2][:, 2] = 0
        factors(model, "1")[3][:, 0] = 0
    assert check(model, nn.Linear(24, 12)) == {"0": (2, 2, 2), "1": (1, 1, 1)}


def test_a_shared_core_loses_what_is_zero_or_no_layer_uses() -> None:
    model = tucker("scada_tucker")
    with torch.no_grad():
        factors(model, "0")[1][:, 0] = 0  # the other layer has use for it
        for name in ("0", "1"):
            factors(model, name)[2][:, 1] = 0
        factors(model, "0")[0][:, :, 2] = 0
    assert check(model, nn.Linear(24, 12)) == {"0": (3, 2, 2), "1": (3, 2, 2)}
    assert factors(model, "0")[0] is factors(model, "1")[0]
    assert not factors(model, "0")[1][:, 0].any()


@pytest.mark.parametrize("scheme", [*rank_schemes(), "ada_tucker", "scada_tucker"])
def test_shrunk_networks_are_pressed_ones(scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = build("lenet5")
    how = {"budget": "params=4000"} if "ada" in scheme else {"ranks": 3}
    model = press(dense, plan(dense, scheme=scheme, **how), init="kaiming")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter[1::2] = 0
                parameter[:, 1::2] = 0
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    expected = model(x)
    assert drop_zero_ranks(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-6)
    size = save(model, tmp_path / "a.tpz", network="lenet5")
    again = load(tmp_path / "a.tpz")
    assert size == (tmp_path / "a.tpz").stat().st_size
    assert plan_from_model(again).layers == plan_from_model(model).layers
    torch.testing.assert_close(unpress(model)(x), expected, rtol=1e-4, atol=1e-6)
    deepcopy(model)(x).sum().backward()


def test_modes_gradients_and_errors_stay() -> None:
    model = nn.Sequential(press_layer(nn.Conv2d(6, 8, 3), "tucker2", 4), nn.ReLU()).train()
    model[0][1].weight.requires_grad_(False)
    model[0].eval()
    error = model[0].relative_error
    with torch.no_grad():
        model[0][0].weight[0] = 0
    assert drop_zero_ranks(model) == {"0": (3, 4)}
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert (model.training, model[0].training, model[0][0].training) == (True, False, False)
    assert model[0].relative_error == error


def test_a_layer_in_two_places_stays_one() -> None:
    layer = press_layer(nn.Linear(8, 8), "channel_svd", 4)
    model = nn.ModuleDict({"a": layer, "b": layer})
    with torch.no_grad():
        layer[0].weight[0] = 0
    assert drop_zero_ranks(model) == {"a": (3,)}
    assert model["a"] is model["b"]


def test_a_dense_model_and_full_factors_are_left() -> None:
    assert drop_zero_ranks(build("lenet5")) == {}
    assert drop_zero_ranks(nn.Sequential(press_layer(nn.Linear(8, 8), "channel_svd", 4))) == {}


@pytest.mark.parametrize("what", ["factor", "bias"])
def test_factors_that_others_hold_are_left(what: str, caplog: pytest.LogCaptureFixture) -> None:
    layers = [press_layer(nn.Linear(8, 8), "channel_svd", 4) for _ in range(2)]
    model = nn.Sequential(*layers)
    if what == "factor":
        layers[1][0].weight = layers[0][0].weight
    else:
        layers[1][1].bias = layers[0][1].bias
    with torch.no_grad():
        layers[0][0].weight[0] = 0
    with caplog.at_level(logging.INFO, logger="tensorpress.press"):
        assert drop_zero_ranks(model) == {}
    assert "layer 0 is unchanged: it shares" in caplog.text


def test_a_tucker_factor_that_another_layer_holds_is_left(caplog: pytest.LogCaptureFixture) -> None:
    model = tucker()
    stored_factors(model[1]).original3 = factors(model, "0")[2]
    with torch.no_grad():
        factors(model, "0")[2][:, 0] = 0
    with caplog.at_level(logging.INFO, logger="tensorpress.press"):
        assert drop_zero_ranks(model) == {}
    assert "layer 0 is unchanged" in caplog.text


def test_reduced_tucker_factors_are_left(caplog: pytest.LogCaptureFixture) -> None:
    model = tucker(reduced=True)
    with torch.no_grad():
        factors(model, "0")[0][0] = 0
        factors(model, "1")[1][:, 0] = 0
    with caplog.at_level(logging.INFO, logger="tensorpress.press"):
        assert check(model, nn.Linear(24, 12)) == {}
    assert "layer 0 is unchanged: its scheme does not say which factors" in caplog.text


@pytest.mark.parametrize("name", ["tensor_train", "tt_weight"])
def test_options_stay(name: str) -> None:
    options = {"row_modes": (2, 4), "column_modes": (4, 4)}
    model = nn.Sequential(press_layer(nn.Linear(16, 8), scheme(name, options), 3))
    with torch.no_grad():
        layer_factors(model[0])[0][..., 0] = 0
    assert drop_zero_ranks(model) == {"0": (2,)}
    assert plan_from_model(model).layers[0].options == options


def test_layers_that_no_plan_describes_are_left(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(press_layer(nn.Linear(16, 8), ChannelSVD("mine", "My own."), 3))
    with torch.no_grad():
        model[0][0].weight[0] = 0
    with caplog.at_level(logging.INFO, logger="tensorpress.press"):
        assert drop_zero_ranks(model) == {}
    assert "layer 0 is unchanged: its scheme and ranks do not describe it" in caplog.text


def test_a_model_that_is_a_pressed_layer_cannot_be_shrunk_in_place() -> None:
    layer = press_layer(nn.Linear(8, 8), "channel_svd", 4)
    with torch.no_grad():
        layer[0].weight[0] = 0
    with pytest.raises(InvalidArgumentError, match="itself the layer"):
        drop_zero_ranks(layer)
    weight = press_layer(nn.Linear(16, 16), "tt_weight", 3)
    with torch.no_grad():
        stored_factors(weight).original0[..., 0] = 0
    assert drop_zero_ranks(weight) == {"": (2,)}


def test_hooks_are_not_lost_silently() -> None:
    layers = [press_layer(nn.Linear(8, 8), "channel_svd", 4) for _ in range(2)]
    model = nn.Sequential(*layers)
    for layer in layers:
        layer[0].weight.data[0] = 0
    layers[1].register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidArgumentError, match="layer '1' has hooks"):
        drop_zero_ranks(model)
    assert model[0] is layers[0]
