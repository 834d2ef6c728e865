"""Models by name."""

import os
from collections.abc import Callable
from difflib import get_close_matches
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
    """Build a model by name, in eval mode.

    Parameters
    ----------
    name : str
        The name of a network in the zoo, such as ``resnet20``; ``torchvision:NAME``; ``timm:NAME``;
        ``hf:FOLDER_OR_ID`` for a Transformers model with its weights; or
        ``package.module:function``, which may be in the current folder. Keyword arguments follow
        after commas: ``torchvision:resnet18,num_classes=10``.
    weights : path, optional
        A safetensors file, or a state dict written by ``torch.save``, with all tensors of the
        model. By default they are random, unless the folder or function provides them.
    device : str or device
        The device of the model.
    meta : bool
        Whether to build the model on the meta device, without memory or values. Models that read
        values while they are built do not support this.

    Raises
    ------
    InvalidArgumentError
        If the name is unknown (the message suggests similar ones), the function fails or does not
        return a module, or weights in a folder are pickled.
    DataNotFoundError, CorruptFileError, ModelMismatchError
        If the weights are missing, damaged or do not fit.
    TensorPressError
        If a package is missing; the message names it.

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
            else "a Hugging Face model is loaded with the weights in its folder, hf:FOLDER"
        )
        raise InvalidArgumentError(f"{name} does not take a weight file: {why}")
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
    """Return a function that builds the model with a name.

    Parameters
    ----------
    parsed : ModelName
        The name.
    empty : bool
        Whether to build a Hugging Face model without the weights in its folder.
    new_head : bool
        Whether its head may differ from those weights; see `build_hugging_face`.
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
        raise _unknown_model(name)
    if options:
        raise InvalidArgumentError(f"{name} is a network of the zoo and takes no options")
    return NETWORKS[name].build


def _unknown_model(name: str) -> InvalidArgumentError:
    """Return the error for a name without a prefix, which may be a network's or a folder's."""
    folder = f"there is no folder {name}{did_you_mean(name)}"
    if get_close_matches(name, NETWORKS):
        error = unknown_name("network", name, NETWORKS)
        return InvalidArgumentError(f"{error}. Other models are named {FORMS}, and {folder}")
    end = "" if folder.endswith("?") else "."
    return InvalidArgumentError(
        f"{folder}{end} The networks of the zoo are {', '.join(sorted(NETWORKS))}; other models "
        f"are named {FORMS}"
    )
