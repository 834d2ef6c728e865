"""Models and shapes that several tests of files use."""

from pathlib import Path

import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.codec.contents import quantized_names, quantizers_for, stored_tensors
from tensorpress.zoo import build

LENET5 = {
    "conv1": {"modes": [25, 20], "ranks": 5},
    "conv2": {"modes": [50, 25, 20], "ranks": 5},
    "ip1": {"modes": [40, 25, 20, 20], "ranks": [5, 5, 4, 4]},
    "ip2": {"modes": [25, 20, 10], "ranks": 4},
}


def pressed(network: str, scheme: str = "ada_tucker", **target: object) -> nn.Module:
    torch.manual_seed(0)
    dense = build(network)
    return tp.press(dense, tp.plan(dense, scheme=scheme, **target), start="kaiming")


def lenet5() -> nn.Module:
    return pressed("lenet5", overrides=LENET5)


def expected(model: nn.Module, quantizer: object = None, norms: str = "half") -> dict[str, Tensor]:
    """What a file of the model must give back, computed without a file."""
    quantizers = dict(quantizers_for(model))
    if isinstance(quantizer, tp.UniformQuantizer):
        quantizers = dict.fromkeys(quantized_names(model), quantizer)
    elif isinstance(quantizer, dict):
        quantizers = quantizer
    values = {}
    for name, tensor in stored_tensors(model).items():
        exact = tensor.detach()
        if name in quantizers:
            values[name] = quantizers[name](exact)
        elif norms == "half" and exact.dtype in (torch.float32, torch.float64):
            values[name] = exact.half().to(exact.dtype)
        else:
            values[name] = exact
    return values


def assert_holds(model: nn.Module, values: dict[str, Tensor]) -> None:
    found = stored_tensors(model)
    assert list(found) == list(values)
    for name, tensor in values.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].detach(), tensor), name


def saved(model: nn.Module, folder: Path, **options: object) -> Path:
    path = folder / "model.tpz"
    assert tp.save(model, path, **options) == path.stat().st_size
    return path


def own() -> nn.Module:
    """A model that is not in the zoo."""
    return nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20))
