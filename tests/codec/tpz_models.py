"""Models and shapes that several tests of files use."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.codec import container, named_header, zoo_header
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.encode_tensors import encode_tensors
from tensorpress.codec.header import Description, PackedLayer
from tensorpress.codec.model_tensors import assign_quantizers, quantized_names, stored_tensors
from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.models.zoo import build

LENET5 = {
    "conv1": {"modes": [25, 20], "ranks": 5},
    "conv2": {"modes": [50, 25, 20], "ranks": 5},
    "ip1": {"modes": [40, 25, 20, 20], "ranks": [5, 5, 4, 4]},
    "ip2": {"modes": [25, 20, 10], "ranks": 4},
}


def press_network(network: str, scheme: str = "ada_tucker", **target: object) -> nn.Module:
    torch.manual_seed(0)
    dense = build(network)
    return tp.press(dense, tp.plan(dense, scheme=scheme, **target), init="kaiming")


def lenet5() -> nn.Module:
    return press_network("lenet5", overrides=LENET5)


def expected(model: nn.Module, quantizer: object = None, norms: str = "half") -> dict[str, Tensor]:
    """What a file of the model must give back, computed without a file."""
    quantizers = dict(assign_quantizers(model))
    if isinstance(quantizer, (tp.UniformQuantizer, StepQuantizer)):
        quantizers = dict.fromkeys(quantized_names(model), quantizer)
    elif isinstance(quantizer, dict):
        quantizers = quantizer
    values = {}
    for name, tensor in stored_tensors(model).items():
        exact = tensor.detach()
        plain = not exact.is_complex() and exact.is_floating_point()
        if plain and exact.numel() > 2 and exact.min() == exact.max():
            values[name] = exact
        elif name in quantizers:
            values[name] = quantizers[name](exact)
        elif norms == "half" and exact.dtype in (torch.float32, torch.float64):
            values[name] = exact.half().to(exact.dtype)
        else:
            values[name] = exact
    return values


def assert_holds(model: nn.Module, values: dict[str, Tensor]) -> None:
    tensors = stored_tensors(model)
    assert list(tensors) == list(values)
    for name, tensor in values.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name].detach(), tensor), name


def save_model(model: nn.Module, folder: Path, **options: object) -> Path:
    path = folder / "model.tpz"
    assert tp.save(model, path, **options) == path.stat().st_size
    return path


def custom_model() -> nn.Module:
    """A model that is not in the zoo."""
    return nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20))


def forge_custom(path: Path, header: Any, model: nn.Module) -> None:
    """Write a file of a model's tensors under any header, with a valid checksum."""
    stream = Stream()
    stream.number("network", 0)
    stored = named_header.compress(header)
    stream.number("header", len(stored))
    write_forged(path, stream, stored, model)


def forge_zoo(path: Path, layers: list[PackedLayer], model: nn.Module) -> None:
    """Write a file that says of lenet300100 whatever is given, with a valid checksum."""
    stream = Stream()
    description = Description("lenet300100", tuple(layers), ())
    zoo_header.write_network(stream, description)
    zoo_header.write_layers(stream, description)
    write_forged(path, stream, b"", model)


def write_forged(path: Path, stream: Stream, header: bytes, model: nn.Module) -> None:
    stream.number("coder", 0)
    quantizers = assign_quantizers(model)
    tensors = stored_tensors(model)
    payload = encode_tensors(
        stream, [t.detach() for t in tensors.values()], [quantizers.get(n) for n in tensors]
    )
    container.write(path, stream.finish(), header + payload)
