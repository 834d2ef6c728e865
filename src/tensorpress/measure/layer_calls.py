"""The calls of a model's layers in a forward pass, by the shapes of their inputs."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs
from tensorpress.schemes.layer_spec import Call, LayerSpec


def record_inputs(
    model: nn.Module, inputs: ExampleInputs, names: Sequence[str]
) -> dict[str, tuple[torch.Size, ...]]:
    """Return the shape of the first argument of every call of some modules.

    Parameters
    ----------
    model : nn.Module
        The model, which runs once in eval mode without gradients; it may be on the meta device.
    inputs : Tensor, sequence or mapping
        Arguments of one forward pass; see `ModelInputs.parse`.
    names : sequence of str
        The names of the modules.

    Returns
    -------
    dict of str to tuple of torch.Size
        For each name, the shapes in the order of the calls; empty if the module is not called.

    Raises
    ------
    InvalidArgumentError
        If the model fails on the inputs; the message quotes its error.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> record_inputs(net, [torch.zeros(2, 3, 9, 9)], ["0"])
    {'0': (torch.Size([2, 3, 9, 9]),)}
    """
    arguments = ModelInputs.parse(inputs)
    shapes: dict[str, list[torch.Size]] = {name: [] for name in names}

    def make_hook(name: str) -> Callable[..., None]:
        def record(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            values = (*arguments, *keywords.values())
            shapes[name] += [value.shape for value in values if isinstance(value, Tensor)][:1]

        return record

    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.no_grad())
        for name in names:
            hook = model.get_submodule(name).register_forward_pre_hook(
                make_hook(name), with_kwargs=True
            )
            stack.callback(hook.remove)
        try:
            arguments.run(model)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidArgumentError(
                f"the model fails on the example inputs [{arguments}]: {error}"
            ) from error
    return {name: tuple(calls) for name, calls in shapes.items()}


def layer_calls(spec: LayerSpec, shapes: Sequence[torch.Size], batch: int) -> tuple[Call, ...]:
    """Return the calls of a layer for one example.

    Parameters
    ----------
    spec : LayerSpec
        The layer.
    shapes : sequence of torch.Size
        The shapes of its inputs, from `record_inputs`.
    batch : int
        Number of examples in the forward pass. If a layer gets more rows, such as the frames of a
        clip as a batch of images, they count as additional calls or positions.

    Examples
    --------
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> layer_calls(describe_layer(nn.Linear(64, 8)), [torch.Size([2, 5, 64])], 2)
    (Call(sizes=(5,), times=1),)
    """
    counts: dict[tuple[int, ...], int] = {}
    for shape in shapes:
        if spec.order:
            sizes, times = tuple(shape[-spec.order :]), prod(shape[: -spec.order - 1])
        else:
            rows = shape if spec.kind == "Embedding" else shape[:-1]
            sizes, times = (ceil(prod(rows) / batch),), batch
        counts[sizes] = counts.get(sizes, 0) + ceil(times / batch)
    return tuple(Call(sizes, times) for sizes, times in counts.items())
