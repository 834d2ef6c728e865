"""How long layers take on this machine: dense, and pressed at any ranks."""

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
from tensorpress.ranks.checks import round_ranks
from tensorpress.schemes.chain_builder import dense_layer
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.scheme import Scheme

SHARES = (0.03, 0.08, 0.16, 0.3, 0.45, 0.65, 1.0)
"""Which ranks are timed: those whose MACs are nearest to these shares of the largest ranks'."""

STEPS = 48
"""Into how many equal steps ranks are divided to find them."""

LEAST, REPEATS, SECONDS, PRECISION = 5, 40, 1.0, 0.02
"""How long the layers of a curve are timed, as `time_passes` takes it."""

_Curve = tuple[list[int], list[float]]


class LayerTimer:
    """Times layers side by side with what schemes make of them.

    Timing every rank of every layer would take hours. Of a layer, a scheme and an input shape
    seven ranks are timed, all in proportion to the largest ones, in rounds with the dense layer;
    what is kept is their time over the dense layer's, as a piecewise linear function of the MACs
    that does not fall. Above the fixed time of its calls, a chain's time grows about in
    proportion to them; steps between the timed ranks, such as at multiples of a vector's length,
    are not seen. Layers of one description and input shape are timed once.

    Other work on the machine only ever adds to a layer's time, and not to its share of the whole
    model's. So the fastest of a layer's passes counts, and on a CPU the processor time of the
    calling thread.

    A weight that is rebuilt from factors counts as rebuilt once for all passes: its layer
    takes the time of the dense one.

    Parameters
    ----------
    weight : Tensor
        Layers are timed on its device and in its dtype, with torch's present number of threads.
    inputs : sequence of Tensor
        Of the whole model. Where one is in channels_last memory format, so is what layers get.
    round_to : int
        Ranks that are timed are multiples of it, as `tensorpress.plan` takes it.

    Raises
    ------
    InvalidArgumentError
        For the meta device, on which nothing takes time.

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

    def __init__(self, weight: Tensor, inputs: Sequence[Tensor], *, round_to: int = 1) -> None:
        if weight.is_meta:
            raise InvalidArgumentError("a model on the meta device has no latency to measure")
        self._like = weight.detach().new_empty(0)
        self._channels_last = any(map(_is_channels_last, inputs))
        self._round_to = round_to
        self._dense: dict[tuple[LayerSpec, torch.Size], float] = {}
        self._curves: dict[tuple[str, LayerSpec, torch.Size], _Curve] = {}

    def time_dense(self, spec: LayerSpec, shapes: Sequence[torch.Size]) -> float:
        """Return the milliseconds of all calls of a dense layer in one forward pass.

        Parameters
        ----------
        spec : LayerSpec
            The layer.
        shapes : sequence of torch.Size
            Of its inputs, a call each, the batch included.
        """
        return sum(times * self._dense_ms(spec, shape) for shape, times in Counter(shapes).items())

    def time_pressed(
        self,
        scheme: Scheme,
        spec: LayerSpec,
        candidates: Sequence[Sizes],
        shapes: Sequence[torch.Size],
    ) -> list[float]:
        """Return the milliseconds of all calls of a layer pressed at each of several ranks.

        Parameters
        ----------
        scheme : Scheme
            One that takes the layer.
        spec : LayerSpec
            The layer.
        candidates : sequence of tuple of int
            Ranks.
        shapes : sequence of torch.Size
            Of its inputs, a call each, the batch included.
        """
        if scheme.form == "weight":
            return [self.time_dense(spec, shapes)] * len(candidates)
        total = np.zeros(len(candidates))
        for shape, times in Counter(shapes).items():
            macs = [_macs(scheme, spec, ranks, shape) for ranks in candidates]
            ratios = np.interp(macs, *self._curve(scheme, spec, shape))
            total += times * self._dense_ms(spec, shape) * ratios
        return [float(ms) for ms in total]

    def time_model(self, model: nn.Module, inputs: Sequence[Tensor]) -> float:
        """Return the milliseconds of a forward pass of a model, measured as layers are.

        What layers take is a part of this, and not of a median by the clock on the wall.
        """
        [ms] = _fastest([model], inputs)
        return ms

    def _dense_ms(self, spec: LayerSpec, shape: torch.Size) -> float:
        key = (spec, shape)
        if key not in self._dense:
            [self._dense[key]] = self._side_by_side(
                [dense_layer(spec, like=self._like)], spec, shape
            )
        return self._dense[key]

    def _curve(self, scheme: Scheme, spec: LayerSpec, shape: torch.Size) -> _Curve:
        """Return MACs, and time over that of the dense layer at each."""
        key = (scheme.name, spec, shape)
        if key not in self._curves:
            macs = _timed_ranks(scheme, spec, shape, self._round_to)
            layers = [scheme.skeleton(spec, ranks, like=self._like) for ranks in macs]
            dense, *pressed = self._side_by_side(
                [dense_layer(spec, like=self._like), *layers], spec, shape
            )
            self._dense.setdefault((spec, shape), dense)
            ratios = np.minimum.accumulate(np.divide(pressed, dense)[::-1])[::-1]
            self._curves[key] = list(macs.values()), ratios.tolist()
        return self._curves[key]

    def _side_by_side(
        self, layers: Sequence[nn.Module], spec: LayerSpec, shape: torch.Size
    ) -> list[float]:
        """Return the milliseconds of layers of random values on random inputs."""
        generator = torch.Generator(self._like.device).manual_seed(0)
        for layer in layers:
            fill_randomly(layer)
        if spec.kind == "Embedding":
            x = torch.randint(spec.inputs, shape, generator=generator, device=self._like.device)
        else:
            x = self._like.new_empty(shape).normal_(generator=generator)
        if self._channels_last and spec.order == len(shape) - 2:
            x = x.contiguous(memory_format=_format(x.dim()))
        return _fastest(layers, [x])


def _fastest(models: Sequence[nn.Module], inputs: Sequence[Tensor]) -> list[float]:
    """Return the least milliseconds of each of several models."""
    times = time_passes(
        models,
        inputs,
        least=LEAST,
        repeats=REPEATS,
        seconds=SECONDS,
        precision=PRECISION,
        clock=thread_time if inputs[0].device.type == "cpu" else perf_counter,
    )
    return list(map(min, times))


def fill_randomly(layer: nn.Module) -> None:
    """Fill a layer's parameters with random numbers that keep its outputs near 1.

    What has no value may hold NaN or denormal numbers, which take other times than what models
    compute with.

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


def _timed_ranks(
    scheme: Scheme, spec: LayerSpec, shape: torch.Size, round_to: int
) -> dict[Sizes, int]:
    """Return the ranks that are timed with their MACs, cheapest first."""
    largest, found = scheme.largest_ranks(spec), {}
    for step in range(1, STEPS + 1):
        asked = [max(1, round(size * step / STEPS)) for size in largest]
        ranks = scheme.attainable(spec, round_ranks(asked, largest, round_to))
        found[ranks] = _macs(scheme, spec, ranks, shape)
    full = max(found.values())
    nearest = {min(found, key=lambda r: abs(found[r] - share * full)) for share in SHARES}
    return {ranks: found[ranks] for ranks in sorted(nearest, key=found.__getitem__)}


def _macs(scheme: Scheme, spec: LayerSpec, ranks: Sizes, shape: torch.Size) -> int:
    """Return the multiply-accumulates of one call."""
    return sum(
        call.times * scheme.macs(spec, ranks, call.sizes) for call in layer_calls(spec, [shape], 1)
    )


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=_format(x.dim())) and not x.is_contiguous()


def _format(order: int) -> torch.memory_format:
    """Return the memory format of tensors with this many modes that has the channels last."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(order, torch.contiguous_format)
