"""Estimates changes of a model's outputs when layers are pressed by one backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, model_outputs
from tensorpress.measure.cost import evaluation_mode, freeze
from tensorpress.schemes.press_layer import press_layer
from tensorpress.sensitivity.candidates import Group, job_name


def estimate_losses(
    model: nn.Module, batches: Sequence[Batch], groups: Sequence[Group], *, seed: int = 0
) -> dict[str, float]:
    r"""Return the estimated squared distance of a model's outputs for every candidate, by job.

    Pressing a layer changes its output by :math:`Δ`, and to first order the outputs of the model
    by :math:`JΔ`. For a random :math:`v` of unit variance :math:`E (v^T J Δ)^2 = ‖JΔ‖^2`, and one
    backward pass of :math:`v^T y` gives :math:`J^T v` for all layers at once. Every example has a
    different :math:`v`; the estimate is the mean over all of them.

    The candidates of all layers are in memory at once, which takes about c / 2 times the memory of
    the model per scheme, with c candidates per layer.

    Parameters
    ----------
    model : nn.Module
        A dense model; it runs in eval mode and is not changed.
    batches : sequence of Batch
        Calibration data; labels are ignored.
    groups : sequence of Group
        The candidates.
    seed : int
        Seed of the random directions.

    Raises
    ------
    InvalidArgumentError
        If the model does not return a Tensor.
    """
    candidates = _press_candidates(model, groups)
    random = torch.Generator().manual_seed(seed)
    sums = dict.fromkeys((job_name(plan) for group in groups for plan in group), 0.0)
    examples = 0
    with evaluation_mode(model), freeze(model.parameters()):
        for batch in batches:
            changes: dict[str, Tensor] = {}
            with _record_changes(candidates, len(batch), changes), torch.enable_grad():
                outputs = model_outputs(model, batch)
                direction = torch.randn(outputs.shape, generator=random).to(outputs)
                product = (outputs * direction).sum()  # vᵀ y
                if product.requires_grad:  # False if no layer is called
                    torch.autograd.backward(product)
            for name, change in changes.items():
                sums[name] += float(change.square().sum())  # Σ (vᵀ J Δ)² over examples
            examples += len(batch)
    return {name: total / examples for name, total in sums.items()}


Jobs = list[tuple[str, nn.Module]]
"""The pressed versions of a layer with their job names."""


def _press_candidates(model: nn.Module, groups: Sequence[Group]) -> list[tuple[nn.Module, Jobs]]:
    candidates: dict[str, Jobs] = {}
    for plan in (plan for group in groups for plan in group):
        pressed = press_layer(model.get_submodule(plan.name), plan.method, plan.ranks)
        pressed = pressed.requires_grad_(False).eval()
        candidates.setdefault(plan.name, []).append((job_name(plan), pressed))
    return [(model.get_submodule(name), jobs) for name, jobs in candidates.items()]


@contextmanager
def _record_changes(
    candidates: Sequence[tuple[nn.Module, Jobs]], examples: int, changes: dict[str, Tensor]
) -> Iterator[None]:
    """Sum vᵀ J Δ, (examples,), of every job over the calls of its layer."""

    def make_hook(jobs: Jobs) -> Callable[..., Tensor]:
        def forward(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            dense = output.detach()
            # A copy, so that in-place operations after the layer do not change ``dense``.
            result = output + torch.zeros((), dtype=output.dtype, requires_grad=True)

            @torch.no_grad()
            def backward(gradient: Tensor) -> None:
                for name, pressed in jobs:
                    # vᵀ J Δ = Σ (Jᵀ v) ⊙ Δ over the values of each example
                    product = gradient * (pressed(*args, **kwargs) - dense)
                    # One sum if the first axis is not the examples.
                    rows = examples if len(product) % examples == 0 else 1
                    change = product.reshape(rows, -1).sum(dim=1, dtype=torch.float64)
                    changes[name] = changes[name] + change if name in changes else change

            result.register_hook(backward)  # type: ignore[no-untyped-call]
            return result

        return forward

    with ExitStack() as stack:
        for layer, jobs in candidates:
            hook = layer.register_forward_hook(make_hook(jobs), with_kwargs=True)
            stack.callback(hook.remove)
        yield
