"""What pressing each layer does to the outputs of a model, by its derivative: one backward pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, model_outputs
from tensorpress.measure.cost import evaluation_mode
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.press_layer import press_layer
from tensorpress.sensitivity.candidates import Group, job_name


def estimate_losses(
    model: nn.Module, batches: Sequence[Batch], groups: Sequence[Group], *, seed: int = 0
) -> dict[str, float]:
    r"""Return the estimated squared distance of a model's outputs for every choice, by job.

    Pressing a layer changes its output by :math:`Δ`, and to first order the outputs of the model
    by :math:`JΔ`. For a random :math:`v` of unit variance :math:`E (v^T J Δ)^2 = ‖JΔ‖^2`, and one
    backward pass of :math:`v^T y` gives :math:`J^T v` for all layers at once. Every example has a
    :math:`v` of its own; the estimate is the mean over all of them.

    The choices of all layers are held at once, with c choices of k / (c + 1) of the parameters
    each about c / 2 times the memory of the model for every scheme.

    Parameters
    ----------
    model : nn.Module
        Dense; it is run in eval mode, and nothing in it is changed.
    batches : sequence of Batch
        Calibration data; labels are not looked at.
    groups : sequence of Group
        The choices.
    seed : int
        Of the random directions.

    Raises
    ------
    InvalidArgumentError
        For a model that returns no Tensor.
    """
    pressed = _pressed(model, groups)
    random = torch.Generator().manual_seed(seed)
    sums = dict.fromkeys((job_name(choice) for group in groups for choice in group), 0.0)
    examples = 0
    with evaluation_mode(model), _frozen(model):
        for batch in batches:
            moved: dict[str, Tensor] = {}
            with _watched(pressed, len(batch), moved), torch.enable_grad():
                found = model_outputs(model, batch)
                direction = torch.randn(found.shape, generator=random).to(found)
                along = (found * direction).sum()
                if along.requires_grad:  # not where no layer is called on these inputs
                    torch.autograd.backward(along)
            for name, movement in moved.items():
                sums[name] += float(movement.square().sum())
            examples += len(batch)
    return {name: total / examples for name, total in sums.items()}


Pressed = list[tuple[nn.Module, list[tuple[str, nn.Module]]]]
"""Layers, each with the modules that may take its place and their jobs."""


def _pressed(model: nn.Module, groups: Sequence[Group]) -> Pressed:
    found: dict[str, list[tuple[str, nn.Module]]] = {}
    for group in groups:
        layer = model.get_submodule(group[0].name)
        ways = [(job_name(choice), _way(layer, choice)) for choice in group]
        found.setdefault(group[0].name, []).extend(ways)
    return [(model.get_submodule(name), ways) for name, ways in found.items()]


def _way(layer: nn.Module, choice: LayerPlan) -> nn.Module:
    return press_layer(layer, choice.method, choice.ranks).requires_grad_(False).eval()


@contextmanager
def _watched(layers: Pressed, examples: int, moved: dict[str, Tensor]) -> Iterator[None]:
    """Add up, for every job and example, what the output moves along the backward pass."""

    def watch(ways: Sequence[tuple[str, nn.Module]]) -> Callable[..., Tensor]:
        def forward(
            _: nn.Module, given: tuple[Any, ...], named: dict[str, Any], found: Tensor
        ) -> Tensor:
            dense = found.detach()
            # A copy of its own keeps what comes after from changing it in place.
            onward = found + torch.zeros((), dtype=found.dtype, requires_grad=True)

            @torch.no_grad()
            def backward(gradient: Tensor) -> None:
                for name, way in ways:
                    along = _by_example(gradient * (way(*given, **named) - dense), examples)
                    moved[name] = moved[name] + along if name in moved else along

            onward.register_hook(backward)  # type: ignore[no-untyped-call]
            return onward

        return forward

    with ExitStack() as stack:
        for layer, ways in layers:
            hook = layer.register_forward_hook(watch(ways), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _by_example(product: Tensor, examples: int) -> Tensor:
    """Return sums over all but the example; one sum where the rows are not those of examples."""
    rows = examples if len(product) % examples == 0 else 1
    return product.reshape(rows, -1).sum(dim=1, dtype=torch.float64)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Ask for no gradients of the parameters: only those of outputs are needed."""
    asked: Mapping[nn.Parameter, bool] = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in asked.items():
            parameter.requires_grad_(required)
