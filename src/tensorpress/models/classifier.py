"""Classifiers by name, with a head for the classes of a data set."""

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
"""What the libraries call the number of classes."""


def build_classifier(name: str, classes: int, *, new_head: bool = False) -> nn.Module:
    """Build a model by its name that returns class scores.

    Parameters
    ----------
    name : str
        As for `tensorpress.models.load_model`.
    classes : int
        The number of outputs of a model of torchvision, timm or Transformers, unless the name says
        another. A function gets what the name says, and nothing else.
    new_head : bool
        Whether the head is freshly initialized where the weights of a folder of Transformers are
        for another number of classes.

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
    """Return the name of a model with its number of classes, unless it says one.

    Examples
    --------
    >>> classifier_name("timm:resnet18", 10), classifier_name("lenet5", 10)
    ('timm:resnet18,num_classes=10', 'lenet5')
    """
    parsed = parse_name(name)
    key = CLASSES.get(parsed.origin)
    return name if key is None or key in parsed.options else f"{name},{key}={classes}"


def _return_logits(_model: nn.Module, _inputs: Any, output: Any) -> Any:
    """Return the scores alone of what a model of Transformers returns."""
    return getattr(output, "logits", output)


def check_classifier(model: nn.Module, shape: Sequence[int], classes: int) -> None:
    """Check that a model has parameters, takes images of a shape and returns scores of classes.

    Parameters
    ----------
    model : nn.Module
        The model.
    shape : sequence of int
        Channels, height and width; of clips, frames come second.
    classes : int
        The least number of scores.

    Raises
    ------
    InvalidArgumentError
        If it does not, or has modules of torch.jit; the message names the layer that fails.

    Examples
    --------
    >>> check_classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), 10)
    Traceback (most recent call last):
    ...
    tensorpress.errors.InvalidArgumentError: an image 1×2×2 becomes 1×3, where scores 1×10 belong
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
            f"an image {format_shape(shape)} becomes {got}, where scores 1×{classes} belong"
        )
    if not output.is_floating_point():
        raise InvalidArgumentError(
            f"an image becomes {output.dtype}, where scores of a floating-point type belong"
        )
    if next(model.parameters(), None) is None:
        raise InvalidArgumentError(
            f"{type(model).__name__} has no parameters, expected weights to train or press"
        )


def check_trainable(model: nn.Module, shape: Sequence[int]) -> None:
    """Check that the scores of a classifier have gradients, unless all parameters are frozen.

    Raises
    ------
    InvalidArgumentError
        If the scores are cut off from the parameters.

    Examples
    --------
    >>> check_trainable(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2))
    """
    with evaluation_mode(model), torch.enable_grad():
        output = model(torch.zeros(1, *shape))
    if not output.requires_grad and any(p.requires_grad for p in model.parameters()):
        raise InvalidArgumentError(
            "the scores are cut off from the parameters, expected them with gradients: leave out "
            "detach and no_grad in forward"
        )


def default_preprocess(channels: int) -> Preprocess:
    """Return how images become the inputs of a network that is not in the zoo.

    Colours are normalized by the mean and standard deviation of ImageNet, for which published
    weights are; other pixels are divided by 255.

    Examples
    --------
    >>> default_preprocess(3).mean
    (0.485, 0.456, 0.406)
    """
    if channels == len(IMAGENET.mean):
        return IMAGENET
    return Preprocess(scale=255, mean=(0.0,) * channels, std=(1.0,) * channels)
