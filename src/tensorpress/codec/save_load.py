"""Saving and loading pressed models: what of a model is in a `.tpz` file, and how it comes back."""

import os
from collections.abc import Mapping
from copy import deepcopy
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tensorpress.codec.header import describe
from tensorpress.codec.model_tensors import (
    assign_quantizers,
    check_finite,
    quantized_names,
    stored_tensors,
)
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.storage import Coder, Quantizer
from tensorpress.codec.tpz_file import open_file, write_file
from tensorpress.errors import InvalidArgumentError, ModelMismatchError, unknown_name
from tensorpress.models.zoo import build
from tensorpress.models.zoo import network as zoo_network
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.press import build_skeleton
from tensorpress.schemes.pressed_layer import check_read

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
) -> int:
    """Write a model to a `.tpz` file: quantized, entropy coded, complete or not at all.

    Parameters
    ----------
    model : nn.Module
        Pressed or not. A parameter held by several layers is written once.
    path : path-like
        The file to write or replace.
    network : str, optional
        The name in `tensorpress.models.zoo` of the network that the model is. The file then carries
        the name, loads without a model, and needs no table of names and shapes.
    quantizer : UniformQuantizer, StepQuantizer or mapping, optional
        One for all floating parameters other than those of norms, or one for each by name
        (`assign_quantizers`), and for any other floating tensor. By default steps of a 32nd of each
        parameter's root mean square.
    norms : {"half", "float32"}
        How parameters of normalization layers, and floating buffers, are stored.
    coder : {"range", "huffman"}
        Entropy coder: adaptive range coding, the smaller, or Huffman codes as in the paper.

    Returns
    -------
    int
        Size of the file in bytes.

    Raises
    ------
    ModelMismatchError
        If the model is not the zoo network it is said to be, or a layer is pressed in a way that
        no plan describes, such as by a scheme of your own.
    InvalidArgumentError
        For values that cannot be stored, such as NaN; the message names the tensor.

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
    if norms not in get_args(Norms):
        raise unknown_name("way to store norms", norms, get_args(Norms))
    tensors = stored_tensors(model)
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    name_in_zoo = None if network is None else zoo_network(network).name
    description = describe(model, name_in_zoo, tensors)
    given = _quantizers(model, tensors, quantizer)
    storages = [given.get(name) or _exact(name, t, norms) for name, t in tensors.items()]
    detached = [tensor.detach() for tensor in tensors.values()]
    return write_file(path, description, detached, storages, coder)


def _quantizers(
    model: nn.Module, tensors: Mapping[str, Tensor], given: Quantizer | Quantizers | None
) -> Quantizers:
    names = quantized_names(model)
    if given is None:
        return assign_quantizers(model)
    if isinstance(given, (UniformQuantizer, StepQuantizer)):
        return dict.fromkeys(names, given)
    floating = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    for name in given:
        if name not in floating:
            raise unknown_name("tensor to quantize", name, floating)
    missing = [name for name in names if name not in given]
    if missing:
        raise InvalidArgumentError(f"there is no quantizer for {', '.join(map(repr, missing))}")
    return given


def _exact(name: str, tensor: Tensor, norms: Norms) -> Literal["half"] | None:
    if norms == "float32" or tensor.dtype not in (torch.float32, torch.float64):
        return None
    if not bool(torch.isfinite(tensor.half()).all()):
        raise InvalidArgumentError(
            f"tensor {name!r} has values that float16 cannot hold: save with norms='float32'"
        )
    return "half"


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Read a model from a `.tpz` file, pressed as it was saved.

    Parameters
    ----------
    path : path-like
        The file. It is not trusted: nothing in it is executed, and the only thing it can
        name is a network of `tensorpress.models.zoo`.
    model : nn.Module, optional
        A dense model of the saved one's architecture, whatever its weights; left untouched. Needed
        unless the file carries the name of a zoo network.

    Returns
    -------
    nn.Module
        On the CPU, in eval mode.

    Raises
    ------
    CorruptFileError
        If the file is truncated, altered or not a `.tpz` file.
    DataNotFoundError
        If there is no such file.
    ModelMismatchError
        If the model does not fit the file, or none is given and the file names no network.
    """
    opened = open_file(path)
    description = opened.description
    dense = _dense(opened.name, description.network, model)
    pressed = build_skeleton(dense, description.plan_for(opened.name, dense))
    tensors = stored_tensors(pressed)
    description.check_tensors(opened.name, tensors)
    decoded = opened.tensors()
    with torch.no_grad():
        for tensor, stored in zip(tensors.values(), decoded, strict=True):
            tensor.copy_(stored.values)
    check_read(pressed, opened.name)
    return pressed.cpu().eval()


def _dense(file: str, network: str | None, model: nn.Module | None) -> nn.Module:
    """Return a dense model of the right architecture that nobody else holds."""
    if model is not None:
        if plan_from_model(model).layers:
            raise ModelMismatchError(f"the model given for {file} is pressed: give a dense one")
        stored_tensors(model)  # says so where one has no values yet
        return deepcopy(model)
    if network is None:
        raise ModelMismatchError(
            f"{file} holds a model that is not in the zoo: give a dense model of the same "
            "architecture as model="
        )
    return build(network)
