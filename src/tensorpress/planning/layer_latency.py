"""Measured times of layers on this machine, dense and pressed at any ranks."""

from collections import Counter
from collections.abc import Sequence
from math import prod
from time import perf_counter, thread_time

import numpy as np
import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.latency import time_passes
from tensorpress.measure.layer_calls import layer_calls
from tensorpress.measure.runtimes import Runtime, in_runtime
from tensorpress.ranks.checks import round_ranks
from tensorpress.schemes.chain_builder import dense_layer
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.scheme import Scheme

SHARES = (0.03, 0.08, 0.16, 0.3, 0.45, 0.65, 1.0)
"""Ranks with MACs nearest to these shares of the MACs at the largest ranks are timed."""

STEPS = 48
"""Number of equal steps of the ranks among which these are chosen."""

LEAST, REPEATS, SECONDS, PRECISION = 5, 40, 1.0, 0.02
"""Least and most rounds, seconds and precision of a curve's measurement; see `time_passes`."""

_Curve = tuple[list[int], list[float]]


class LayerTimer:
    """Times dense layers and the pressed layers of schemes side by side.

    Timing every rank of every layer would take hours. For each layer, scheme and input shape, seven
    ranks in proportion to the largest ones are timed in rounds with the dense layer. Between them,
    time relative to the dense layer is interpolated as a non-decreasing, piecewise linear function
    of the MACs. This misses steps between the timed ranks, such as at multiples of a vector length.
    Layers of equal spec and input shape are timed once.

    Other work on the machine can only add to the time of a layer. So the fastest pass counts, and
    on a CPU the processor time of the calling thread.

    A layer whose weight is rebuilt from factors takes the time of the dense layer, because its
    weight is rebuilt once for all passes.

    Parameters
    ----------
    weight : Tensor
        Layers are timed on its device and in its dtype, with torch's present number of threads.
    inputs : sequence of Tensor
        Inputs of the whole model. If one is in channels_last memory format, inputs of layers are
        too.
    round_to : int
        The timed ranks are multiples of it.
    runtime : {"torch", "onnxruntime", "openvino"}
        Where layers are timed.

    Raises
    ------
    InvalidArgumentError
        If the weight is on the meta device.

    Examples
    --------
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> from tensorpress.schemes.registry import scheme
    >>> layer, shapes = nn.Linear(30, 20), [torch.Size([8, 30])]
    >>> timer = LayerTimer(layer.weight, [torch.zeros(8, 30)])
    >>> spec, candidates = describe_layer(layer), [(2,), (4,), (9,)]
    >>> ms = timer.time_pressed(scheme("channel_svd"), spec, candidates, shapes)
    >>> len(ms), timer.time_dense(spec, shapes) > 0
    (3, True)
    """

    def __init__(
        self,
        weight: Tensor,
        inputs: Sequence[Tensor],
        *,
        round_to: int = 1,
        runtime: Runtime = "torch",
    ) -> None:
        if weight.is_meta:
            raise InvalidArgumentError("a model on the meta device has no latency to measure")
        self._like = weight.detach().new_empty(0)
        self._channels_last = any(map(_is_channels_last, inputs))
        self._round_to, self._runtime = round_to, runtime
        self._dense: dict[tuple[LayerSpec, torch.Size], float] = {}
        self._curves: dict[tuple[str, LayerSpec, torch.Size], _Curve] = {}

    def time_dense(self, spec: LayerSpec, shapes: Sequence[torch.Size]) -> float:
        """Return the milliseconds of a dense layer in one forward pass, one call for each shape."""
        return sum(times * self._dense_ms(spec, shape) for shape, times in Counter(shapes).items())

    def time_pressed(
        self,
        scheme: Scheme,
        spec: LayerSpec,
        candidates: Sequence[Sizes],
        shapes: Sequence[torch.Size],
    ) -> list[float]:
        """Return the milliseconds of a layer in one forward pass, pressed at several ranks.

        Parameters
        ----------
        scheme : Scheme
            A scheme that can press the layer.
        spec : LayerSpec
            The layer.
        candidates : sequence of tuple of int
            The ranks, which give one time each.
        shapes : sequence of torch.Size
            Shapes of the inputs of its calls, the batch included.
        """
        if scheme.form == "weight":
            return [self.time_dense(spec, shapes)] * len(candidates)
        total = np.zeros(len(candidates))
        for shape, times in Counter(shapes).items():
            macs = [_macs(scheme, spec, ranks, shape) for ranks in candidates]
            ratios = np.interp(macs, *self._curve(scheme, spec, shape))
            total += times * self._dense_ms(spec, shape) * ratios
        return [float(ms) for ms in total]

    def _dense_ms(self, spec: LayerSpec, shape: torch.Size) -> float:
        key = (spec, shape)
        if key not in self._dense:
            [self._dense[key]] = self._time_layers([], spec, shape)
        return self._dense[key]

    def _curve(self, scheme: Scheme, spec: LayerSpec, shape: torch.Size) -> _Curve:
        """Return MACs, and the time relative to the dense layer at each."""
        key = (scheme.name, spec, shape)
        if key not in self._curves:
            macs = _choose_ranks(scheme, spec, shape, self._round_to)
            layers = [scheme.skeleton(spec, ranks, like=self._like) for ranks in macs]
            dense, *pressed = self._time_layers(layers, spec, shape)
            self._dense.setdefault((spec, shape), dense)
            ratios = np.minimum.accumulate(np.divide(pressed, dense)[::-1])[::-1]
            self._curves[key] = list(macs.values()), ratios.tolist()
        return self._curves[key]

    def _time_layers(
        self, pressed: Sequence[nn.Module], spec: LayerSpec, shape: torch.Size
    ) -> list[float]:
        """Return the least milliseconds of the dense and the pressed layers, on random values."""
        layers = [dense_layer(spec, like=self._like), *pressed]
        generator = torch.Generator(self._like.device).manual_seed(0)
        for layer in layers:
            fill_randomly(layer)
        if spec.kind == "Embedding":
            x = torch.randint(spec.inputs, shape, generator=generator, device=self._like.device)
        else:
            x = self._like.new_empty(shape).normal_(generator=generator)
        if self._channels_last and spec.order == len(shape) - 2:
            x = x.contiguous(memory_format=_format(x.dim()))
        times = time_passes(
            [in_runtime(layer, x, self._runtime) for layer in layers],
            [x],
            least=LEAST,
            repeats=REPEATS,
            seconds=SECONDS,
            precision=PRECISION,
            clock=thread_time if x.device.type == "cpu" else perf_counter,
        )
        return list(map(min, times))


def fill_randomly(layer: nn.Module) -> None:
    """Fill a layer's parameters with random numbers that give outputs near 1.

    Uninitialized memory may contain NaN or denormal numbers, which distort times.

    Examples
    --------
    >>> layer = nn.Linear(300, 20)
    >>> fill_randomly(layer)
    >>> bool(layer.weight.abs().max() < 1)
    True
    """
    for value in layer.parameters():
        generator = torch.Generator(value.device).manual_seed(value.numel())
        value.detach().normal_(0, prod(value.shape[1:]) ** -0.5, generator=generator)


def _choose_ranks(
    scheme: Scheme, spec: LayerSpec, shape: torch.Size, round_to: int
) -> dict[Sizes, int]:
    """Return the ranks to time with their MACs, cheapest first."""
    largest, macs = scheme.largest_ranks(spec), {}
    for step in range(1, STEPS + 1):
        scaled = [max(1, round(size * step / STEPS)) for size in largest]
        ranks = scheme.attainable(spec, round_ranks(scaled, largest, round_to))
        macs[ranks] = _macs(scheme, spec, ranks, shape)
    full = max(macs.values())
    nearest = {min(macs, key=lambda r: abs(macs[r] - share * full)) for share in SHARES}
    return {ranks: macs[ranks] for ranks in sorted(nearest, key=macs.__getitem__)}


def _macs(scheme: Scheme, spec: LayerSpec, ranks: Sizes, shape: torch.Size) -> int:
    """Return the multiply-accumulates of one call."""
    return sum(
        call.times * scheme.macs(spec, ranks, call.sizes) for call in layer_calls(spec, [shape], 1)
    )


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=_format(x.dim())) and not x.is_contiguous()


def _format(order: int) -> torch.memory_format:
    """Return the memory format with the channels last, for tensors of this order."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(order, torch.contiguous_format)
