import logging
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from tensorpress import load, plan, press, save
from tensorpress.errors import InvalidArgumentError
from tensorpress.folding import fold_norms
from tensorpress.models.torchvision import torchvision_models
from tensorpress.schemes.press_layer import press_layer
from tensorpress.zoo import network

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def lived(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, its norms with statistics and parameters as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, NORMS):
            for tensor, low, high in (
                (module.running_mean, -1.0, 1.0),
                (module.running_var, 0.1, 3.0),
                (module.weight, -1.5, 1.5),
                (module.bias, -1.0, 1.0),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)
            if module.num_batches_tracked is not None:
                module.num_batches_tracked.fill_(77)
    return model.eval()


def check(model: nn.Module, x: torch.Tensor) -> list[str]:
    """Fold a model in double precision and compare; return the names."""
    model, x = model.double(), x.double()
    keys = {key: value.shape for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
        folded = fold_norms(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
    assert {key: value.shape for key, value in model.state_dict().items()} == keys
    for name in folded:
        norm = model.get_submodule(name)
        assert not norm.running_mean.any()
        assert (norm.running_var == 1).all()
        assert norm.num_batches_tracked == 0
    return folded


def identity_norms(model: nn.Module) -> list[str]:
    """The norms whose weight is 1."""
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, NORMS)]
    return [name for name, norm in norms if norm.weight is None or bool((norm.weight == 1).all())]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(5))


def test_every_norm_of_a_resnet_is_folded() -> None:
    model = lived(network("resnet20").build())
    folded = check(model, images(3, 32, 32))
    assert len(folded) == 19
    assert identity_norms(model) == folded


@pytest.mark.parametrize("scheme", ["channel_svd", "spatial_svd", "tucker2", "tensor_train"])
def test_the_last_layer_of_a_chain_takes_the_scale(scheme: str) -> None:
    model = lived(network("resnet20").build())
    pressed = press(model, plan(model, scheme=scheme, ranks=0.1, targets=["layer2.*"]))
    folded = check(pressed, images(3, 32, 32))
    assert len(folded) == 19
    assert identity_norms(pressed) == folded


@pytest.mark.parametrize("scheme", ["ada_tucker", "scada_tucker", "tt_weight", "tt_conv"])
def test_a_norm_after_factors_keeps_its_scale(scheme: str) -> None:
    model = lived(nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3)))
    how = {"budget": "params=1500"} if "ada" in scheme else {"ranks": 0.5}
    pressed = press(model, plan(model, scheme=scheme, targets=["0"], **how))
    assert check(pressed, images(8, 9, 9)) == ["1"]
    assert identity_norms(pressed) == []
    assert not pressed[0].bias.any()


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(6, 4, 3, groups=2), nn.BatchNorm1d(4), (6, 9)),
        (nn.Conv3d(2, 4, 3, bias=False), nn.BatchNorm3d(4), (2, 5, 5, 5)),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), nn.BatchNorm2d(4), (6, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (4, 5)),
        (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, eps=0.1), (4, 5, 5)),
        (nn.Linear(6, 4), nn.BatchNorm1d(4), (6,)),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (4, 5, 5)),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, momentum=None), (4, 5, 5)),
    ],
    ids=str,
)
def test_every_kind_of_layer_takes_the_scale(
    layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]
) -> None:
    model = lived(nn.Sequential(layer, norm, nn.ReLU()))
    assert check(model, images(*shape)) == ["1"]
    assert identity_norms(model) == ["1"]
    if layer.bias is not None and norm.affine:
        assert not layer.bias.any()


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121"])
def test_networks_of_torchvision(name: str) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    models = torchvision_models()
    torch.manual_seed(0)
    model = lived(getattr(models, name)(num_classes=4))
    norms = [key for key, module in model.named_modules() if isinstance(module, NORMS)]
    for module in model.modules():
        if isinstance(module, NORMS):  # deep, so that values would leave what a float can hold
            module.weight.data.uniform_(0.5, 1.0)
    assert check(model, images(3, 32, 32)) == norms
    # Those of a DenseNet's blocks come before the convolutions, or after a concatenation.
    assert (len(identity_norms(model)) == len(norms)) == (name == "mobilenet_v2")


class Twice(nn.Module):
    """A layer, or its norm, or what the layer gives, or its weight is used twice."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        if what == "tied":
            self.other.weight = self.conv.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        z = self.norm(y)
        if self.what == "layer":
            return z + self.conv(z)
        if self.what == "norm":
            return z + self.norm(self.other(z))
        if self.what == "output":
            return z + y
        if self.what == "weight":
            return z + self.conv.weight.sum()
        return self.other(z)


@pytest.mark.parametrize("what", ["layer", "norm", "output", "weight", "tied"])
def test_what_is_used_twice_stays_and_the_norm_keeps_its_scale(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = lived(Twice(what))
    before = deepcopy(model.conv.state_dict())
    with caplog.at_level(logging.INFO, logger="tensorpress.folding"):
        assert check(model, images(4, 5, 5)) == ["norm"]
    assert identity_norms(model) == []
    assert "norm norm keeps its scale" in caplog.text
    for key, value in model.conv.state_dict().items():
        assert torch.equal(value.float(), before[key])
    assert identity_norms(lived(Twice("nothing"))) == []


class Sharp(nn.Module):
    """Cannot be traced: what it does depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) if x.sum() > -1e9 else x


def test_without_a_trace_norms_keep_their_scales(caplog: pytest.LogCaptureFixture) -> None:
    model = lived(Sharp())
    with caplog.at_level(logging.INFO, logger="tensorpress.folding"):
        assert check(model, images(4, 5, 5)) == ["norm"]
    assert identity_norms(model) == []
    assert "cannot be traced" in caplog.text


class Loud(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.running_mean.sum()


def test_norms_that_are_something_else_are_left() -> None:
    norms = [
        Loud(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    ]
    model = lived(nn.Sequential(*(part for norm in norms for part in (nn.Conv2d(4, 4, 1), norm))))
    before = deepcopy(model.state_dict())
    assert fold_norms(model) == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_norm_without_parameters_needs_a_layer_with_a_bias() -> None:
    pairs = [
        (nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4, affine=False)),
        (nn.ReLU(), nn.BatchNorm2d(4, affine=False)),
    ]
    model = lived(nn.Sequential(*(part for pair in pairs for part in pair)))
    before = deepcopy(model.state_dict())
    assert fold_norms(model) == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_layer_whose_channels_are_not_the_norms_stays() -> None:
    model = lived(nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(3)))
    assert check(model, images(3, 5)) == ["1"]
    assert identity_norms(model) == []


def test_a_hook_between_layer_and_norm_is_seen() -> None:
    model = lived(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    model[1].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    assert check(model, images(4, 3, 3)) == ["1"]
    assert identity_norms(model) == []


def test_norms_that_share_a_parameter_are_left() -> None:
    model = lived(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    model[2].weight = model[1].weight
    assert check(model, images(4, 3, 3)) == []


def test_a_pressed_layer_alone_before_a_norm() -> None:
    chain = press_layer(nn.Conv2d(6, 8, 3), "tucker2", 3)
    model = lived(nn.Sequential(chain, nn.BatchNorm2d(8)))
    assert check(model, images(6, 5, 5)) == ["1"]
    assert identity_norms(model) == ["1"]


def test_folding_again_changes_nothing() -> None:
    model = lived(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    fold_norms(model)
    before = deepcopy(model.state_dict())
    assert fold_norms(model) == ["1"]
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key])


def test_modes_and_what_requires_gradients_stay() -> None:
    model = lived(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout())).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    fold_norms(model)
    assert [module.training for module in model] == [True, False, True]
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]


def test_half_precision_is_folded_without_loss_of_range() -> None:
    model = lived(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))).bfloat16()
    x = images(4, 5, 5).bfloat16()
    expected = model(x)
    assert fold_norms(model) == ["1"]
    assert model[0].weight.dtype == torch.bfloat16
    torch.testing.assert_close(model(x), expected, rtol=0.1, atol=0.1)


def test_a_scale_that_a_layer_cannot_hold_stays_with_the_norm() -> None:
    model = lived(nn.Sequential(nn.Conv2d(4, 4, 1).half(), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model[0].weight.fill_(60000.0)
        model[1].weight.fill_(100.0)
    assert fold_norms(model) == ["1"]
    assert (model[0].weight == 60000.0).all()
    assert (model[1].weight != 1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_norm_with_values_that_are_not_finite_is_named(value: float) -> None:
    model = lived(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))
    model[2].running_mean[1] = value
    before = deepcopy(model.state_dict())
    with pytest.raises(InvalidArgumentError, match="norm '2' has NaN"):
        fold_norms(model)
    assert torch.equal(model[1].running_mean, before["1.running_mean"])


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(InvalidArgumentError, match="norm '1' is on the meta device"):
        fold_norms(model)


def test_a_folded_network_of_the_zoo_is_saved_and_loaded(tmp_path: Path) -> None:
    model = lived(network("resnet20").build())
    folded = fold_norms(model)
    save(model, tmp_path / "folded.tpz", network="resnet20", norms="float32")
    found = load(tmp_path / "folded.tpz")
    for name in folded:
        for key, value in found.get_submodule(name).state_dict().items():
            assert torch.equal(value, model.state_dict()[f"{name}.{key}"])
