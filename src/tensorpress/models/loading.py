"""Building a model from its name."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.models.factory import build_from_factory
from tensorpress.models.hugging_face import build_hugging_face
from tensorpress.models.names import FORMS, ModelName, parse_name
from tensorpress.models.timm import build_timm
from tensorpress.models.torchvision import build_torchvision
from tensorpress.models.weights import load_weights
from tensorpress.models.zoo import NETWORKS
from tensorpress.utils.paths import did_you_mean


def load_model(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    meta: bool = False,
) -> nn.Module:
    """Build a model by its name, in eval mode.

    Parameters
    ----------
    name : str
        The name of a network of the zoo, such as ``resnet20``, or ``torchvision:NAME``,
        ``timm:NAME``, ``hf:FOLDER_OR_ID`` for a model of transformers with its weights, or
        ``package.module:function`` for a function, which may be in the current folder. Keyword
        arguments follow after commas: ``torchvision:resnet18,num_classes=10``.
    weights : path, optional
        A safetensors file, or a state dict that ``torch.save`` wrote, with all tensors of the
        model. Without it, they are random, unless the folder or the function provides them.
    device : str or device
        The device of the model.
    meta : bool
        Whether to build the model on the meta device, where it takes no memory and has no values.
        A model that reads values while it is built cannot be built there.

    Raises
    ------
    InvalidArgumentError
        If the name is unknown (the message has the nearest names), the function fails or returns no
        module, or the weights of a folder are pickled.
    DataNotFoundError, CorruptFileError, ModelMismatchError
        If the weights are missing, damaged or do not fit.
    TensorPressError
        If a package is missing, which the message names.

    Examples
    --------
    >>> load_model("lenet5", meta=True).ip1.weight.device
    device(type='meta')
    >>> load_model("torch.nn:Linear,in_features=3,out_features=2")
    Linear(in_features=3, out_features=2, bias=True)
    """
    parsed = parse_name(name)
    if weights is not None and (meta or parsed.origin == "hf"):
        why = (
            "a model on the meta device has no values"
            if meta
            else "a model of Hugging Face is a folder that holds its weights: hf:FOLDER"
        )
        raise InvalidArgumentError(f"{name} takes no file of weights: {why}")
    build = find_builder(parsed, empty=meta)
    if meta:
        with torch.device("meta"):
            return build().to("meta").eval()
    model = build()
    if weights is not None:
        load_weights(model, Path(weights))
    return model.to(device).eval()


def find_builder(
    parsed: ModelName, *, empty: bool = False, new_head: bool = False
) -> Callable[[], nn.Module]:
    """Return the function that builds the model of a name.

    Parameters
    ----------
    parsed : ModelName
        The name.
    empty : bool
        Whether a model of Hugging Face is built without the weights of its folder.
    new_head : bool
        Whether its head may be for other classes than those weights; see `build_hugging_face`.
    """
    name, options = parsed.name, parsed.options
    if parsed.origin == "torchvision":
        return lambda: build_torchvision(name, options)
    if parsed.origin == "timm":
        return lambda: build_timm(name, options)
    if parsed.origin == "hf":
        return lambda: build_hugging_face(name, options, empty=empty, new_head=new_head)
    if parsed.origin:
        return lambda: build_from_factory(parsed.origin, name, options)
    if name not in NETWORKS:
        raise InvalidArgumentError(
            f"{unknown_name('network', name, NETWORKS)}. Models of others are named {FORMS}, and "
            f"there is no folder {name}{did_you_mean(name)}"
        )
    if options:
        raise InvalidArgumentError(f"{name}, a network of the zoo, takes no options")
    return NETWORKS[name].build
