"""Weights that another library has quantized stay as they are, and files refuse them by name."""

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError


class Rounded(nn.Parameter):
    """A weight like those of bitsandbytes: a Parameter with a scale beside its integers."""

    scale: Tensor

    def __new__(cls, weight: Tensor) -> "Rounded":
        scale = weight.abs().amax(1, keepdim=True) / 127
        self = torch.Tensor._make_subclass(cls, (weight / scale).round().to(torch.int8))
        self.scale = scale
        return self

    def to(self, *args, **kwargs):
        moved = torch.Tensor._make_subclass(type(self), super().to(*args, **kwargs))
        moved.scale = self.scale.to(*args, **kwargs)
        return moved

    def __deepcopy__(self, memo):
        return self.to("cpu")


class RoundedLinear(nn.Linear):
    """A layer that multiplies with such a weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.weight: Rounded = Rounded(linear.weight.detach())
        self.bias = nn.Parameter(linear.bias.detach().clone())
        self.weight.requires_grad = False

    def forward(self, x):
        return nn.functional.linear(x, self.weight.float() * self.weight.scale, self.bias)


def look_alike(model):
    model[2] = RoundedLinear(model[2])


def torchao(model):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(model[2], quantization.Int8WeightOnlyConfig(), filter_fn=lambda *_: True)


KINDS = {"torchao": torchao, "bitsandbytes": look_alike}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def model(request):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)
    )
    request.param(net)
    return net


@pytest.mark.filterwarnings("ignore")
def test_quantized_weights_are_rows_with_a_reason_and_others_are_pressed(model):
    x = torch.randn(200, 32)
    result = tp.compress(model, "params=85%", [x], refine=False)
    assert [layer.name for layer in result.plan.layers] in (["0"], ["0", "4"], ["4"])
    assert type(model[2].weight).__name__ in result.plan.unpressed["2"]
    assert type(result.model[2].weight) is type(model[2].weight)
    assert tp.fidelity(model, result.model, [x]).error < 0.9


@pytest.mark.parametrize(
    "write",
    [
        lambda model, path: tp.encode(model, path, bits=4),
        lambda model, path: tp.encode(model, path, lossless=True),
        lambda model, path: tp.save(model, path),
        lambda model, path: tp.compress(model, "bytes=25%", [torch.randn(40, 32)], out=path),
    ],
    ids=["encode", "lossless", "save", "compress"],
)
def test_files_refuse_them_by_name(model, write, tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"2\.weight.*before it was quantized"):
        write(model, tmp_path / "a.tpz")
    assert not list(tmp_path.iterdir())


def test_checkpoints_refuse_them_by_name(model, tmp_path):
    pressed = tp.press(model, tp.plan(model, scheme="channel_svd", ranks=4))
    with pytest.raises(InvalidArgumentError, match=r"2\.weight.*torch\.save"):
        tp.save_checkpoint(pressed, tmp_path / "folder")
