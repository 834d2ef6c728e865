"""Saves models to `.tpz` files and loads them."""

import os
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tensorpress.codec.container import name_file_in_errors
from tensorpress.codec.decode_tensors import DecodedTensor, own_values
from tensorpress.codec.header import dense_network, describe
from tensorpress.codec.model_tensors import (
    assign_quantizers,
    check_finite,
    distinct_state,
    quantized_names,
    stored_tensors,
)
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.storage import Coder, Quantizer, Request
from tensorpress.codec.tpz_file import OpenFile, open_file, write_file
from tensorpress.errors import InvalidArgumentError, ModelMismatchError, unknown_name
from tensorpress.models.zoo import network as zoo_network
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.press import build_skeleton
from tensorpress.schemes.folding import fold
from tensorpress.schemes.pressed_layer import check_read
from tensorpress.utils.module_tree import copy_model, unwrap

Quantizers = Mapping[str, Quantizer]
Norms = Literal["half", "float32"]


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    network: str | None = None,
    quantizer: Quantizer | Quantizers | None = None,
    norms: Norms = "half",
    coder: Coder = "range",
    data: str | None = None,
    preprocess: str | None = None,
    lossless: bool = False,
) -> int:
    """Write a model to a `.tpz` file: quantized, entropy coded, and complete or not at all.

    Parameters
    ----------
    model : nn.Module
        A model, pressed or not. Shared parameters are written once. Weight norm, spectral norm and
        pruning masks are folded into the weights.
    path : path-like
        The file to write or replace.
    network : str, optional
        The name of the model's network in `tensorpress.models.zoo`. The file then loads without a
        model, and needs no table of names and shapes.
    quantizer : UniformQuantizer, StepQuantizer or mapping, optional
        One quantizer for all floating-point parameters except those of norms, or one for each of
        these, and for other floating-point tensors, by name. By default, steps are 1/32 of each
        parameter's root mean square (`assign_quantizers`).
    norms : {"half", "float32"}
        How parameters of normalization layers and floating-point buffers are stored.
    coder : {"range", "huffman"}
        The entropy coder: adaptive range coding, which gives smaller files, or Huffman codes as in
        the ADA-Tucker paper.
    data : str, optional
        The name of the data that the model was trained for, which `inspect` returns.
    preprocess : str, optional
        How the model takes images, in the form of the command line's option ``--preprocess``
        (`tensorpress.data.ImageOptions`). Commands that read the file prepare images in this way. A
        network of the zoo needs none.
    lossless : bool
        Whether to keep every bit of all tensors, NaN included; takes no quantizer.

    Returns
    -------
    int
        The size of the file in bytes.

    Raises
    ------
    ModelMismatchError
        If the model is not the network that `network` names, or no plan describes how a layer is
        pressed, for example by a scheme that is not registered.
    InvalidArgumentError
        If a tensor has values that cannot be stored, such as NaN; the message names the tensor.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from tensorpress.models.zoo import build
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save(build("lenet300100"), pathlib.Path(folder) / "a.tpz", network="lenet300100")
    ...     model = load(pathlib.Path(folder) / "a.tpz")
    >>> type(model).__name__
    'LeNet300100'
    """
    if lossless and quantizer is not None:
        raise InvalidArgumentError("a lossless file takes no quantizer")
    if norms not in get_args(Norms):
        raise unknown_name("way to store norms", norms, get_args(Norms))
    model = fold(model)
    tensors = stored_tensors(model)
    for name, tensor in tensors.items():
        if not lossless or tensor.is_complex():
            check_finite(name, tensor)
    name_in_zoo = None if network is None else zoo_network(network).name
    description = describe(model, name_in_zoo, tensors)
    storages: list[Request] = ["coded"] * len(tensors)
    if not lossless:
        quantizers = _quantizers(model, tensors, quantizer)
        storages = [
            quantizers.get(name) or _norm_storage(name, tensor, norms)
            for name, tensor in tensors.items()
        ]
    detached = [tensor.detach() for tensor in tensors.values()]
    return write_file(path, description, detached, storages, coder, data, preprocess)


def _quantizers(
    model: nn.Module, tensors: Mapping[str, Tensor], quantizer: Quantizer | Quantizers | None
) -> Quantizers:
    """Return the quantizer of every quantized tensor by name."""
    if quantizer is None:
        return assign_quantizers(model)
    names = quantized_names(model)
    if isinstance(quantizer, (UniformQuantizer, StepQuantizer)):
        return dict.fromkeys(names, quantizer)
    floating = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    for name in quantizer:
        if name not in floating:
            raise unknown_name("tensor to quantize", name, floating)
    missing = [name for name in names if name not in quantizer]
    if missing:
        raise InvalidArgumentError(f"there is no quantizer for {', '.join(map(repr, missing))}")
    return quantizer


def _norm_storage(name: str, tensor: Tensor, norms: Norms) -> Literal["half"] | None:
    """Return the storage of a tensor that is not quantized: float16, or exact."""
    if norms == "float32" or tensor.dtype not in (torch.float32, torch.float64):
        return None
    if not bool(torch.isfinite(tensor.half()).all()):
        raise InvalidArgumentError(
            f"tensor {name!r} has values that overflow float16: save with norms='float32'"
        )
    return "half"


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    max_bytes: int | None = None,
) -> nn.Module:
    """Read a model from a `.tpz` file, pressed as it was saved.

    Parameters
    ----------
    path : path-like
        The file. It is untrusted: nothing in it is executed, and it can only name a network of
        `tensorpress.models.zoo`.
    model : nn.Module, optional
        A dense model of the saved model's architecture, with any weights; it is left unchanged. It
        is needed unless the file has the name of a zoo network.
    max_bytes : int, optional
        The memory that reading may take, by default 64 MiB plus 64 times the size of the file; four
        times the size of ``model`` is added. Raise it for trusted files that need more, such as
        those of nearly empty networks.

    Returns
    -------
    nn.Module
        The model, on the CPU and in eval mode.

    Raises
    ------
    CorruptFileError
        If the file is truncated, altered or not a `.tpz` file, or reading it exceeds `max_bytes`.
    DataNotFoundError
        If the file does not exist.
    ModelMismatchError
        If the model does not fit the file, or `model` is None and the file names no network.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save(nn.Linear(3, 2), f"{folder}/a.tpz")
    ...     load(f"{folder}/a.tpz", nn.Linear(3, 2))
    Linear(in_features=3, out_features=2, bias=True)
    """
    model = None if model is None else unwrap(model)
    size = 0 if model is None else sum(t.nbytes for t in stored_tensors(model).values())
    opened = open_file(path, max_bytes=max_bytes, model_bytes=size)
    description = opened.description
    pressed_names = tuple(f"{layer.name}." for layer in description.layers)
    names = {x.name for x in description.tensors if not x.name.startswith(pressed_names)}
    dense = _dense_model(opened.name, description.network, model, names)
    pressed = build_skeleton(dense, description.plan_for(opened.name, dense))
    tensors = distinct_state(pressed)
    description.check_tensors(opened.name, tensors)
    decoded = opened.tensors()
    if model is None:
        _assign(pressed, decoded, opened)
    else:
        with torch.no_grad():
            for tensor, stored in zip(tensors.values(), decoded, strict=True):
                tensor.copy_(stored.values)
    check_read(pressed, opened.name)
    return pressed.cpu().eval()


def _dense_model(
    file: str, network: str | None, model: nn.Module | None, names: set[str]
) -> nn.Module:
    """Return a new dense model of the file's architecture; ``names`` are its unpressed tensors."""
    if model is not None:
        if plan_from_model(model).layers:
            raise ModelMismatchError(f"the model for {file} is pressed: pass a dense one")
        stored_tensors(model)  # raises if a tensor has no values yet
        folded = fold(model)
        # Older files have weight norm and masks unfolded.
        unfolded = names & (model.state_dict().keys() - folded.state_dict().keys())
        return copy_model(model if unfolded or folded is model else folded)
    if network is None:
        raise ModelMismatchError(
            f"{file} has a model that is not in the zoo: pass a dense model of the same "
            "architecture as model="
        )
    return dense_network(network)


def _assign(model: nn.Module, decoded: Sequence[DecodedTensor], opened: OpenFile) -> None:
    """Replace the tensors of a meta network by decoded ones; shared tensors stay shared."""
    values: dict[int, Tensor] = {}
    with name_file_in_errors(opened.name):
        for tensor, stored in zip(distinct_state(model).values(), decoded, strict=True):
            result = own_values(stored, opened.budget)
            if isinstance(tensor, nn.Parameter):
                result = nn.Parameter(result, requires_grad=tensor.requires_grad)
            values[id(tensor)] = result
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, place in tensors.items():
                tensors[name] = values.get(id(place), place)  # type: ignore[assignment]
