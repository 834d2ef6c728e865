"""Example inputs, from text or as the default for a known model."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError, first_line, unknown_name
from tensorpress.measure.cost import evaluation_mode
from tensorpress.measure.model_inputs import ModelInputs
from tensorpress.models.names import parse_name
from tensorpress.models.torchvision import torchvision_shape
from tensorpress.models.zoo import NETWORKS

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        *(torch.int64, torch.int32, torch.bool),
    )
}
_TOKENS = 16


def parse_input(text: str, model: nn.Module) -> Tensor:
    """Return an example input from text such as ``1x3x224x224`` or ``1x128:int64``.

    Parameters
    ----------
    text : str
        The sizes, with the batch first, and optionally a dtype; the default is float32.
    model : nn.Module
        The model. The input is on its device, and integers are below the size of its vocabulary.

    Returns
    -------
    Tensor
        Random values, the same at every call.

    Raises
    ------
    InvalidArgumentError
        If the text has another format, or the input does not fit into memory.

    Examples
    --------
    >>> parse_input("2x5:int64", nn.Embedding(10, 3)).shape
    torch.Size([2, 5])
    """
    sizes, _, dtype = text.partition(":")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise InvalidArgumentError(
            f"{text!r} is not an input: expected sizes and, unless it is float32, a dtype, such as "
            "1x3x224x224 or 1x128:int64"
        )
    if dtype and dtype not in _DTYPES:
        raise unknown_name("input dtype", dtype, _DTYPES)
    try:
        return _example(tuple(map(int, sizes.split("x"))), _DTYPES[dtype or "float32"], model)
    except (RuntimeError, TypeError, ValueError) as error:  # from torch: no memory, or no number
        raise InvalidArgumentError(f"the input {sizes[:80]} is too large") from error


def format_inputs(inputs: ModelInputs) -> str:
    """Return tensors as text for `parse_input`, with argument names.

    Examples
    --------
    >>> format_inputs(ModelInputs((), {"input_ids": torch.zeros(1, 5, dtype=torch.int64)}))
    'input_ids 1x5:int64'
    """
    named = [("", value) for value in inputs.positional]
    named += [(f"{name} ", value) for name, value in inputs.named.items()]
    texts = []
    for name, value in named:
        if isinstance(value, Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            texts.append(name + _size(value) + ("" if dtype == "float32" else f":{dtype}"))
    return ", ".join(texts)


def default_inputs(name: str, model: nn.Module) -> tuple[Tensor, ...] | None:
    """Return one example for a model built by name, or None if its inputs are unknown.

    Networks of the zoo take images or clips of a fixed size. Models from torchvision and timm get
    images of the size for their published weights. Transformers models get 16 tokens, or an image
    of the size in their config.

    Examples
    --------
    >>> from tensorpress.models import load_model
    >>> [example.shape for example in default_inputs("lenet5", load_model("lenet5", meta=True))]
    [torch.Size([1, 1, 28, 28])]
    """
    parsed = parse_name(name)
    shape: tuple[int, ...] | None = None
    dtype = torch.float32
    if parsed.origin == "torchvision":
        shape = torchvision_shape(parsed.name)
    elif parsed.origin == "timm":
        shape = (1, *getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224)))
    elif parsed.origin == "hf":
        shape, dtype = _hugging_face_input(model)
    elif parsed.name in NETWORKS and not parsed.origin:
        shape = (1, *NETWORKS[parsed.name].input_shape)
    return None if shape is None else (_example(shape, dtype, model),)


def check_inputs(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Run a model once on example inputs.

    Raises
    ------
    InvalidArgumentError
        If the model fails; the message names the layer and quotes torch.

    Examples
    --------
    >>> check_inputs(nn.Sequential(nn.Linear(3, 2)), [torch.zeros(1, 4)])
    Traceback (most recent call last):
    ...
    tensorpress.errors.InvalidArgumentError: the model fails on the input 1x4: layer '0' \
(Linear, weight 2x3), which got 1x4: mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)
    """
    arguments = ModelInputs(tuple(inputs))
    try:
        with evaluation_mode(model), torch.no_grad():
            arguments.run(model)
    except Exception as error:
        raise input_error(model, arguments, error) from error


def input_error(
    model: nn.Module, inputs: ModelInputs, error: BaseException
) -> InvalidArgumentError:
    """Return the error for inputs on which a model failed; it names the layer."""
    message = first_line(error)
    plural = "s" if len(inputs.tensors) > 1 else ""
    return InvalidArgumentError(
        f"the model fails on the input{plural} {format_inputs(inputs)}: "
        f"{_describe_failure(model, inputs)}{message}"
    )


def _describe_failure(model: nn.Module, inputs: ModelInputs) -> str:
    """Return text with the layer that fails and its inputs."""
    running: list[tuple[nn.Module, Any]] = []
    handles = [
        handle
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)  # which do not allow hooks
        for handle in (
            module.register_forward_pre_hook(lambda layer, args: running.append((layer, args))),
            module.register_forward_hook(lambda *_: _drop_last(running)),
        )
    ]
    try:
        with evaluation_mode(model), torch.no_grad():
            inputs.run(model)
    except Exception:  # which the caller has already
        return _describe_layer(model, *running[-1]) if running else ""
    finally:
        for handle in handles:
            handle.remove()
    return ""


def _drop_last(running: list[tuple[nn.Module, Any]]) -> None:
    running.pop()


def _describe_layer(model: nn.Module, failed: nn.Module, arguments: Any) -> str:
    name = next(name for name, module in model.named_modules() if module is failed)
    if not name:
        return ""
    weight = failed._parameters.get("weight")
    kind = type(failed).__name__ + ("" if weight is None else f", weight {_size(weight)}")
    return f"layer {name!r} ({kind}), which got {format_inputs(ModelInputs(arguments))}: "


def _example(shape: tuple[int, ...], dtype: torch.dtype, model: nn.Module) -> Tensor:
    tensors = (*model.parameters(), *model.buffers())
    device = tensors[0].device if tensors else torch.device("cpu")
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(device, dtype)
    below = 2 if dtype == torch.bool else _vocabulary(model)
    return torch.randint(below, shape, generator=generator).to(device, dtype)


def _vocabulary(model: nn.Module) -> int:
    """Return the size of the vocabulary."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    size = getattr(config, "vocab_size", None)
    if isinstance(size, int):
        return size
    tables = [part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)]
    return min(tables, default=2)


def _hugging_face_input(model: nn.Module) -> tuple[tuple[int, ...] | None, torch.dtype]:
    """Return shape and dtype of the main input of a Transformers model."""
    config, main = model.config, getattr(model, "main_input_name", "input_ids")
    if main == "input_ids":
        longest = getattr(config, "max_position_embeddings", _TOKENS) or _TOKENS
        return (1, min(_TOKENS, longest)), torch.int64
    side = getattr(config, "image_size", None)
    if main != "pixel_values" or side is None:
        return None, torch.float32
    sides = (side, side) if isinstance(side, int) else tuple(side)
    return (1, getattr(config, "num_channels", 3), *sides), torch.float32


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
