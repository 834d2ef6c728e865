"""Classifiers by name, with a head for the classes of a dataset."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.models.inputs import check_inputs
from tensorpress.models.loading import find_builder
from tensorpress.models.names import parse_name
from tensorpress.models.zoo import Preprocess
from tensorpress.models.zoo.registry import IMAGENET
from tensorpress.utils.formatting import format_shape
from tensorpress.utils.module_tree import refuse_scripts

CLASSES = {"torchvision": "num_classes", "timm": "num_classes", "hf": "num_labels"}
"""The option for the number of classes in each library."""


def build_classifier(name: str, classes: int, *, new_head: bool = False) -> nn.Module:
    """Build a model by name that returns class scores.

    Parameters
    ----------
    name : str
        The name, as in `tensorpress.models.load_model`.
    classes : int
        Number of outputs of a model from torchvision, timm or Transformers, unless the name sets
        it. Functions only get the options in the name.
    new_head : bool
        Whether to initialize a new head if the weights in a Transformers folder are for a different
        number of classes.

    Examples
    --------
    >>> build_classifier("torch.nn:Linear,in_features=3,out_features=2", 2)
    Linear(in_features=3, out_features=2, bias=True)
    """
    parsed = parse_name(classifier_name(name, classes))
    model = find_builder(parsed, new_head=new_head)()
    if parsed.origin == "hf":
        model.register_forward_hook(_return_logits)
    return model


def classifier_name(name: str, classes: int) -> str:
    """Return the name of a model with its number of classes, unless the name sets it.

    Examples
    --------
    >>> classifier_name("timm:resnet18", 10), classifier_name("lenet5", 10)
    ('timm:resnet18,num_classes=10', 'lenet5')
    """
    parsed = parse_name(name)
    key = CLASSES.get(parsed.origin)
    return name if key is None or key in parsed.options else f"{name},{key}={classes}"


def _return_logits(_model: nn.Module, _inputs: Any, output: Any) -> Any:
    """Return the scores from the output of a Transformers model."""
    return getattr(output, "logits", output)


def check_classifier(model: nn.Module, shape: Sequence[int], classes: int) -> None:
    """Check that a model has parameters, takes images of a shape and returns class scores.

    Parameters
    ----------
    model : nn.Module
        The model.
    shape : sequence of int
        Channels, height and width; for clips, frames come second.
    classes : int
        The minimum number of scores.

    Raises
    ------
    InvalidArgumentError
        If it does not, or has torch.jit modules; the message names the layer that fails.

    Examples
    --------
    >>> check_classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), 10)
    Traceback (most recent call last):
    ...
    tensorpress.errors.InvalidArgumentError: expected scores 1×10 for an image 1×2×2, got 1×3
    """
    refuse_scripts(model)
    image = torch.zeros(1, *shape)
    check_inputs(model, [image])
    with evaluation_mode(model), torch.no_grad():
        output = model(image)
    fits = isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] >= classes
    if not fits:
        got = format_shape(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InvalidArgumentError(
            f"expected scores 1×{classes} for an image {format_shape(shape)}, got {got}"
        )
    if not output.is_floating_point():
        raise InvalidArgumentError(f"expected scores of a floating-point dtype, got {output.dtype}")
    if next(model.parameters(), None) is None:
        raise InvalidArgumentError(f"{type(model).__name__} has no parameters to train or press")


def check_trainable(model: nn.Module, shape: Sequence[int]) -> None:
    """Check that the scores of a classifier have gradients, unless all parameters are frozen.

    Raises
    ------
    InvalidArgumentError
        If the scores are detached from the parameters.

    Examples
    --------
    >>> check_trainable(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2))
    """
    with evaluation_mode(model), torch.enable_grad():
        output = model(torch.zeros(1, *shape))
    if not output.requires_grad and any(p.requires_grad for p in model.parameters()):
        raise InvalidArgumentError(
            "the scores have no gradients: remove detach and no_grad from forward"
        )


def default_preprocess(channels: int) -> Preprocess:
    """Return the default preprocessing of images for networks outside the zoo.

    Colour images are normalized by the mean and standard deviation of ImageNet, as published
    weights require; other pixels are divided by 255.

    Examples
    --------
    >>> default_preprocess(3).mean
    (0.485, 0.456, 0.406)
    """
    if channels == len(IMAGENET.mean):
        return IMAGENET
    return Preprocess(scale=255, mean=(0.0,) * channels, std=(1.0,) * channels)
