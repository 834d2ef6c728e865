"""Second moments of layers' responses, and of the outputs' gradients by these responses."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.outputs import (
    Deviation,
    deviation_scales,
    output_tensors,
    random_direction,
    token_mask,
)
from tensorpress.calibrate.patches import can_unfold, output_rows
from tensorpress.calibrate.sampled_loss import unlabelled_loss
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode, freeze
from tensorpress.reconstruct.next_op import find_next_ops
from tensorpress.schemes.layer_spec import layer_class

Curvature = Literal["outputs", "loss"]
"""The function whose curvature is taken: the outputs' squared distance, or their cross entropy."""

_DAMPING = 1e-3  # of the gradients' second moment, relative to its mean eigenvalue

logger = logging.getLogger("tensorpress.sensitivity")


@dataclass
class ResponseMoments:
    """Sums of second moments of a layer's responses, and of the gradients g by them.

    A layer with fewer inputs than outputs has sums over its inputs x and Wᵀg instead, because the
    eigenvalues of A^½ (Wᵀ B W) A^½ equal those of B^½ (W A Wᵀ) B^½.
    """

    values: Tensor  # (groups, n, n), float64
    mean: Tensor  # (groups, n)
    gradients: Tensor  # (groups, n, n)
    centred: bool
    rows: int = 0
    examples: int = 0
    has_gradients: bool = False

    @staticmethod
    def zeros(groups: int, channels: int, centred: bool) -> "ResponseMoments":
        """Return sums over no responses."""
        square = torch.zeros(groups, channels, channels, dtype=torch.float64)
        return ResponseMoments(square, square[..., 0].clone(), square.clone(), centred)

    def add_values(self, rows: Tensor) -> None:
        """Add responses, (rows, groups, n)."""
        columns = rows.movedim(0, -1).float()
        self.values += (columns @ columns.mT).to(self.values)
        self.mean += columns.sum(-1).to(self.mean)
        self.rows += len(rows)

    def add_gradients(self, rows: Tensor) -> None:
        """Add gradients, (rows, groups, n)."""
        self.has_gradients = True
        columns = rows.movedim(0, -1).float()
        self.gradients += (columns @ columns.mT).to(self.gradients)

    def lost(self) -> Tensor:
        """Return the loss per example at rank 0, 1, …, in the unit of the outputs."""
        mean = self.mean / self.rows
        second = self.values / self.rows
        if self.centred:  # the bias takes the mean
            second = second - mean[..., None] * mean[..., None, :]
        # summed over the positions of an example: T · mean = sum / examples
        gradients = self.gradients / self.examples
        level = gradients.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
        eye = torch.eye(gradients.shape[-1], dtype=gradients.dtype)
        values, vectors = torch.linalg.eigh(gradients + _DAMPING * level * eye)
        root = vectors * values.clamp_min(0).sqrt()[:, None] @ vectors.mT
        # λ of B^½ C B^½, the largest first; Σ_{i>r} λ_i for r = 0, 1, …
        energies = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).flip(-1).sum(0)
        return torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])


def collect_moments(
    model: nn.Module, batches: Sequence[Batch], names: Sequence[str], of: Curvature, seed: int
) -> tuple[float, dict[str, ResponseMoments]]:
    """Collect moments in one forward and backward pass per batch.

    Parameters
    ----------
    model : nn.Module
        The dense model.
    batches : sequence of Batch
        Calibration data.
    names : sequence of str
        Layers; a warning names those without responses or gradients.
    of : {"outputs", "loss"}
        See `tensorpress.sensitivity.kfac.kfac_scores`.
    seed : int
        Seed of the directions, or of the labels.

    Returns
    -------
    float
        The factor from the loss per example to a score.
    dict of str to ResponseMoments
        The moments by layer name.

    Raises
    ------
    InvalidArgumentError
        If the outputs have no gradient or, for "loss", are not logits.
    """
    random = torch.Generator().manual_seed(seed)
    modules = {name: model.get_submodule(name) for name in names}
    layers = {name: layer for name, layer in modules.items() if has_responses(layer)}
    normed = {name for name, layer in layers.items() if layer._parameters.get("bias") is None}
    normed -= {name for name, layer in layers.items() if isinstance(layer, nn.Embedding)}
    normed = _followed_by_norm(model, normed, batches[0])
    moments: dict[str, ResponseMoments] = {}
    without: set[str] = set()  # layers in parts of the model that run without gradients
    deviations: dict[int, Deviation] = {}
    scales: list[float] = []
    examples = 0
    for batch in batches:
        with (
            evaluation_mode(model),
            freeze(model.parameters()),
            torch.enable_grad(),
            _watch(layers, moments, normed, without, batch),
        ):
            outputs = output_tensors(model, batch)
            scales = scales or deviation_scales(outputs, batch)
            outputs = [y * scale for y, scale in zip(outputs, scales, strict=False)]
            along = (
                unlabelled_loss(model, batch, outputs, random)
                if of == "loss"
                else random_direction(outputs, random)
            )
            if along.requires_grad:
                torch.autograd.backward(along)
        for place, y in enumerate(outputs):
            deviations.setdefault(place, Deviation()).add(y.detach(), token_mask(y, batch))
        examples += len(batch)
    moments = {name: sums for name, sums in moments.items() if sums.has_gradients}
    if names and not moments:
        raise InvalidArgumentError(
            "the outputs have no gradient by the responses of any layer: the model runs them "
            "without gradients (no_grad, inference_mode or detach)"
        )
    for name in names:
        if name not in moments:
            logger.warning("layer %s is not scored: %s", name, _reason(name, layers, without))
    for sums in moments.values():
        sums.examples = examples
    energy = sum(deviation.energy for deviation in deviations.values()) / examples
    return (0.5 if of == "loss" else 1 / max(energy, 1e-30)), moments


def _reason(name: str, layers: Mapping[str, nn.Module], without: set[str]) -> str:
    if name not in layers:
        return "it does not multiply inputs by its weight"
    if name in without:
        return "it is called without gradients"
    return "the calibration data do not reach it"


def has_responses(layer: nn.Module) -> bool:
    """Tell whether a layer multiplies vectors by a weight, one-hot ones for an Embedding."""
    return can_unfold(layer) or layer_class(layer) is nn.Embedding


@contextmanager
def _watch(
    layers: Mapping[str, nn.Module],
    moments: dict[str, ResponseMoments],
    normed: set[str],
    without: set[str],
    batch: Batch,
) -> Iterator[None]:
    """Add second moments of responses and gradients, without padding, in the pass of a batch."""

    def make_hook(name: str, layer: nn.Module) -> Callable[..., Tensor]:
        weight = layer.get_parameter("weight").detach()
        by_inputs = isinstance(layer, nn.Linear) and weight.shape[0] > weight.shape[1]

        def rows(y: Tensor) -> Tensor:
            return output_rows(layer, batch.unpadded(layer, y))

        def forward(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            result = output + torch.zeros((), dtype=output.dtype, requires_grad=True)
            if not result.requires_grad:  # the model runs this part without gradients
                without.add(name)
                return output
            bias = layer._parameters.get("bias")
            with torch.no_grad():
                if by_inputs:
                    seen = batch.unpadded(layer, (*args, *kwargs.values())[0].detach())
                    seen = seen.reshape(-1, 1, seen.shape[-1])
                else:
                    seen = rows(output.detach())
                    if bias is not None:
                        seen = seen - bias.reshape(seen.shape[1:])
                if name not in moments:
                    centred = bias is not None or name in normed
                    moments[name] = ResponseMoments.zeros(seen.shape[1], seen.shape[2], centred)
                moments[name].add_values(seen)

            @torch.no_grad()
            def backward(gradient: Tensor) -> None:
                slopes = rows(gradient)
                moments[name].add_gradients(slopes @ weight.to(slopes) if by_inputs else slopes)

            result.register_hook(backward)  # type: ignore[no-untyped-call]
            return result

        return forward

    with ExitStack() as stack:
        for name, layer in layers.items():
            hook = layer.register_forward_hook(make_hook(name, layer), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _followed_by_norm(model: nn.Module, names: set[str], batch: Batch) -> set[str]:
    after = find_next_ops(model, sorted(names), batch)
    return {name for name, following in after.items() if following.norm is not None}
