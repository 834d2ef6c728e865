"""The tensors of a model that a `.tpz` file stores, and their quantizers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tensorpress.codec.quantizers import StepQuantizer
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.layer_spec import NORMS
from tensorpress.utils.tensor_kinds import is_plain

DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.complex64, torch.complex128),
    )
}
"""The types of tensors that a file can store, by name."""

_UNINITIALIZED = (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer)


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a file stores: parameters and persistent buffers, without duplicates.

    Raises
    ------
    InvalidArgumentError
        If a tensor has no values yet or cannot be stored, or a module has other state; the
        message names it.

    Examples
    --------
    >>> list(stored_tensors(nn.Linear(3, 2)))
    ['weight', 'bias']
    """
    tensors = distinct_state(model)
    for name, tensor in tensors.items():
        check_storable(name, tensor)
    return tensors


def distinct_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of a model in order, without duplicates."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        names.setdefault(id(tensor), name)
    return {name: state[name] for name in names.values()}


def quantized_names(model: nn.Module) -> list[str]:
    """Return the names of the quantized parameters: floating-point ones, except those of norms.

    Examples
    --------
    >>> quantized_names(nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)))
    ['0.weight']
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORMS)
        for parameter in module.parameters(recurse=False)
    }
    return [
        name
        for name, tensor in stored_tensors(model).items()
        if isinstance(tensor, nn.Parameter)
        and tensor.is_floating_point()
        and id(tensor) not in norms
    ]


def assign_quantizers(model: nn.Module, *, step: float = 1 / 32) -> dict[str, StepQuantizer]:
    """Return a quantizer for every quantized parameter, with a step in proportion to its values.

    Parameters
    ----------
    model : nn.Module
        A model, pressed or not.
    step : float
        Quantization step in units of the parameter's root mean square, to within 5 %; the relative
        error of rounding is about ``step / √12``.

    Raises
    ------
    InvalidArgumentError
        If a parameter has NaN or infinite values, or values that overflow float32.

    Examples
    --------
    >>> assign_quantizers(nn.Linear(3, 2), step=0.5)["weight"].step < 0.5
    True
    """
    tensors = stored_tensors(model)
    quantizers = {}
    for name in quantized_names(model):
        try:
            quantizers[name] = _fit_quantizer(tensors[name].detach().double(), step)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"tensor {name!r}: {error}") from None
    return quantizers


def check_storable(name: str, tensor: object) -> None:
    """Raise an `InvalidArgumentError` if no file can store a tensor."""
    if not isinstance(tensor, Tensor):
        raise InvalidArgumentError(f"{name!r} is state other than a tensor, which cannot be stored")
    if tensor.is_meta or isinstance(tensor, _UNINITIALIZED):
        raise InvalidArgumentError(f"tensor {name!r} has no values yet")
    if not is_plain(tensor):
        raise InvalidArgumentError(
            f"tensor {name!r} is of class {type(tensor).__name__}, which a .tpz file cannot hold: "
            "encode the model as it was before it was quantized"
        )
    if tensor.dtype not in DTYPES.values() or tensor.layout is not torch.strided:
        kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
        raise InvalidArgumentError(f"tensor {name!r} is {kind}, which a .tpz file cannot store")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise an `InvalidArgumentError` if a tensor has NaN or infinite values."""
    exact = not (tensor.is_floating_point() or tensor.is_complex())
    if not exact and not bool(torch.isfinite(tensor).all()):
        raise InvalidArgumentError(f"tensor {name!r} has NaN or infinite values")


def _fit_quantizer(values: Tensor, step: float) -> StepQuantizer:
    if not bool(torch.isfinite(values).all()):
        raise InvalidArgumentError("NaN or infinite values cannot be quantized")
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest > torch.finfo(torch.float32).max:
        raise InvalidArgumentError(f"{largest:g} overflows float32 and cannot be quantized")
    rms = float(values.square().mean().sqrt()) if values.numel() else 0.0
    # A root mean square below all normal float32 numbers counts as zero.
    return StepQuantizer.nearest(step * (rms if rms >= torch.finfo(torch.float32).tiny else 1.0))
