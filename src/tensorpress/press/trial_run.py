"""A first forward pass of a pressed model, so that errors appear early and name the layer."""

import traceback

import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError, first_line
from tensorpress.measure.cost import evaluation_mode
from tensorpress.measure.model_inputs import ModelInputs


def check_runs(model: nn.Module, inputs: ModelInputs) -> None:
    """Run a pressed model once, in eval mode.

    Raises
    ------
    InvalidArgumentError
        If it fails; the message names the layer and quotes the error.

    Examples
    --------
    >>> check_runs(nn.Sequential(nn.Linear(3, 2)), ModelInputs.parse(torch.zeros(1, 4)))
    Traceback (most recent call last):
    ...
    tensorpress.errors.InvalidArgumentError: the pressed model fails on the inputs [(1, 4) \
torch.float32]: layer '0' (Linear): mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)
    """
    try:
        with evaluation_mode(model), torch.no_grad():
            inputs.run(model)
    except Exception as error:  # a model may raise anything
        message = first_line(error)
        raise InvalidArgumentError(
            f"the pressed model fails on the inputs [{inputs}]: "
            f"{_failed_layer(model, error)}{message}"
        ) from error


def _failed_layer(model: nn.Module, error: Exception) -> str:
    """Return the name of the innermost module in which an error was raised, as a prefix."""
    names = {id(module): name for name, module in model.named_modules() if name}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        module = frame.f_locals.get("self")
        if id(module) in names:
            return f"layer {names[id(module)]!r} ({type(module).__name__}): "
    return ""
