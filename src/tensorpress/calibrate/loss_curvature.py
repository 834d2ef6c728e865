"""Second moments of Linear layers' inputs, and of the loss's gradients by their outputs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, CalibrationBatch, collect_batches
from tensorpress.calibrate.bfloat16 import bfloat16_passes
from tensorpress.calibrate.outputs import output_tensors
from tensorpress.calibrate.patches import ANY_CONV, can_unfold
from tensorpress.calibrate.sampled_loss import unlabelled_loss
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode, freeze
from tensorpress.utils.module_tree import unwrap

MOST = 16_384
"""Layers with more inputs or outputs, such as the head of a large vocabulary, are left out."""


@dataclass
class InputMoment:
    """Sums over the inputs x of a layer.

    Attributes
    ----------
    second : Tensor
        Sum of x xᵀ, (inputs, inputs), float32.
    first : Tensor
        Sum of x, (inputs,).
    rows : int
        The number of inputs.
    """

    second: Tensor
    first: Tensor
    rows: int = 0

    def add(self, x: Tensor) -> None:
        """Add inputs, (rows, inputs)."""
        self.second += _square(x)
        self.first += x.sum(0, dtype=torch.float32)
        self.rows += len(x)

    def mean(self, *, centred: bool) -> Tensor:
        """Return the mean of x xᵀ, or the covariance, float64."""
        second = self.second.double() / self.rows
        mean = self.first.double() / self.rows
        return second - mean[:, None] * mean if centred else second


@dataclass(frozen=True)
class LossCurvature:
    r"""The curvature of a model's loss for its Linear layers, as Kronecker factors.

    An error D of a layer's weight raises the loss of an example by about
    :math:`\frac{1}{2} \operatorname{tr}(B D A D^T)` times the number of positions, where A is the
    second moment of the layer's inputs, and B that of the loss's gradients by its responses.

    For a causal language model of transformers, the loss is that of the texts' next tokens. For
    other models it is the cross entropy at labels drawn from the model's probabilities, so that the
    curvature is that of the Kullback–Leibler divergence from the model. Labels are ignored.

    Attributes
    ----------
    inputs : mapping of str to InputMoment
        The moments of inputs by layer name; layers with the same input share an object.
    gradients : mapping of str to Tensor
        The sum of g gᵀ over gradients g by responses, (outputs, outputs), float32, by layer name.
    examples : int
        The number of examples.

    References
    ----------
    Martens, Grosse (2015), "Optimizing neural networks with Kronecker-factored approximate
    curvature".

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 4))
    >>> curvature = LossCurvature.collect(net, [torch.randn(100, 20)])
    >>> curvature.inputs["2"].rows, curvature.gradients["2"].shape
    (100, torch.Size([4, 4]))
    """

    inputs: Mapping[str, InputMoment]
    gradients: Mapping[str, Tensor]
    examples: int

    @staticmethod
    def collect(
        model: nn.Module,
        batches: Iterable[CalibrationBatch],
        *,
        names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> "LossCurvature":
        """Collect the moments in one forward and backward pass over batches.

        Parameters
        ----------
        model : nn.Module
            A model whose first output, or ``logits``, is logits; it is run in eval mode.
        batches : iterable
            Calibration data, as for `tensorpress.press`; padding is ignored.
        names : sequence of str, optional
            The layers; by default all Linear layers and Conv1D of transformers. Those with more
            than 16,384 inputs or outputs are left out.
        seed : int
            Seed of the drawn labels.

        Raises
        ------
        InvalidArgumentError
            If there are no batches, outputs are not logits, nothing has a gradient, or moments of a
            layer, which the message names, are not finite.
        """
        model = unwrap(model)
        data = collect_batches(batches, model)
        chosen = None if names is None else set(names)
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if (chosen is None or name in chosen)
            and can_unfold(layer)
            and not isinstance(layer, ANY_CONV)
            and max(layer.get_parameter("weight").shape) <= MOST
        }
        sums = _Sums(layers)
        random = torch.Generator().manual_seed(seed)
        for batch in data:
            with (
                evaluation_mode(model),
                freeze(model.parameters()),
                torch.enable_grad(),
                sums.watch(batch),
            ):
                with bfloat16_passes(model):
                    outputs = output_tensors(model, batch)
                loss = unlabelled_loss(model, batch, outputs, random)
                if loss.requires_grad:
                    torch.autograd.backward(loss)
        return sums.result(sum(map(len, data)))


@dataclass
class _Sums:
    """Sums over batches, filled by hooks."""

    layers: Mapping[str, nn.Module]
    inputs: dict[str, InputMoment] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    leaders: dict[str, str] = field(default_factory=dict)

    def result(self, examples: int) -> LossCurvature:
        if not self.gradients:
            raise InvalidArgumentError(
                "the outputs have no gradient by the responses of any Linear"
            )
        inputs = {name: self.inputs[self.leaders[name]] for name in self.gradients}
        for name, second in self.gradients.items():
            if not bool(second.isfinite().all() & inputs[name].second.isfinite().all()):
                raise InvalidArgumentError(
                    f"layer {name!r}: its inputs or gradients are not finite"
                )
        return LossCurvature(inputs, self.gradients, examples)

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Add the inputs and gradients of layers during a ``with`` block."""
        seen: dict[
            tuple[int, int], tuple[Tensor, str]
        ] = {}  # holds tensors, so that ids stay unique

        def make_hook(name: str, layer: nn.Module) -> Callable[..., Tensor]:
            def forward(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
                x = (*args, *kwargs.values())[0]
                result = output + torch.zeros((), dtype=output.dtype, requires_grad=True)
                if not result.requires_grad:  # the model runs this part without gradients
                    return output
                leader = seen.setdefault((id(x), x._version), (x, name))[1]
                leader = self.leaders.setdefault(name, leader)
                if leader == name:
                    self._add_inputs(name, _rows(batch, layer, x.detach()))

                @torch.no_grad()
                def backward(gradient: Tensor) -> None:
                    square = _square(_rows(batch, layer, gradient))
                    if name in self.gradients:
                        self.gradients[name] += square
                    else:
                        self.gradients[name] = square

                result.register_hook(backward)  # type: ignore[no-untyped-call]
                return result

            return forward

        with ExitStack() as stack:
            for name, layer in self.layers.items():
                hook = layer.register_forward_hook(make_hook(name, layer), with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def _add_inputs(self, name: str, x: Tensor) -> None:
        if name not in self.inputs:
            width = x.shape[-1]
            zeros = torch.zeros(width, width, device=x.device)
            self.inputs[name] = InputMoment(zeros, zeros[0].clone())
        self.inputs[name].add(x)


def _rows(batch: Batch, layer: nn.Module, x: Tensor) -> Tensor:
    x = batch.unpadded(layer, x)
    return x.reshape(-1, x.shape[-1])


def _square(rows: Tensor) -> Tensor:
    """Return Σ x xᵀ of rows in float32, multiplied in their dtype unless it is float16."""
    rows = rows.float() if rows.dtype == torch.float16 else rows
    with torch.autocast(rows.device.type, enabled=False):
        return (rows.mT @ rows).float()
