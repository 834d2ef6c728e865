"""Layers of every kind and configuration, with inputs that fit, for property tests."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@dataclass(frozen=True)
class Case:
    """A layer and an input of two examples, with the sizes a scheme's cost is asked for."""

    layer: nn.Module
    example: Tensor
    sizes: tuple[int, ...]

    def __repr__(self) -> str:
        return f"{self.layer}, input {tuple(self.example.shape)}"


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double()


@st.composite
def cases(draw: st.DrawFn, kind: str, *, grouped: bool = False) -> Case:
    """Draw a float64 layer of a kind and an input, on request a layer with groups."""
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    if kind == "Linear":
        inputs, outputs = draw(st.integers(2, 12)), draw(st.integers(2, 12))
        bias, sizes = draw(st.booleans()), draw(st.sampled_from([(), (3,), (2, 2)]))
        layer = _seeded(lambda: nn.Linear(inputs, outputs, bias=bias), seed)
        example = torch.randn(2, *sizes, inputs, generator=generator, dtype=torch.float64)
        return Case(layer, example, sizes)
    if kind == "Embedding":
        count, length = draw(st.integers(2, 15)), draw(st.integers(2, 12))
        pad = draw(st.sampled_from([None, 0, count - 1]))
        layer = _seeded(lambda: nn.Embedding(count, length, padding_idx=pad), seed)
        return Case(layer, torch.randint(count, (2, 3), generator=generator), (3,))
    order = int(kind[-2])
    layer, inputs = draw(_convolutions(kind, order, seed, grouped))
    sizes = tuple(
        d * (k - 1) + extra + 3  # reflected padding of 2 needs 3
        for d, k, extra in zip(
            layer.dilation,
            layer.kernel_size,
            draw(st.tuples(*[st.integers(0, 4)] * order)),
            strict=True,
        )
    )
    example = torch.randn(2, inputs, *sizes, generator=generator, dtype=torch.float64)
    return Case(layer, example, sizes)


@st.composite
def _convolutions(
    draw: st.DrawFn, kind: str, order: int, seed: int, grouped: bool
) -> tuple[nn.modules.conv._ConvNd, int]:
    def each(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * order))

    groups = draw(st.sampled_from([2, 3] if grouped else [1, 1, 2, 3]))
    inputs, outputs = (groups * draw(st.integers(1, 5)) for _ in range(2))
    kernel, dilation = each(1, 3), each(1, 2)
    options = {"groups": groups, "bias": draw(st.booleans()), "dilation": dilation}
    if kind.startswith("ConvTranspose"):
        stride = each(1, 3)
        output_padding = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        padding = tuple(
            draw(st.integers(0, (k - 1) * d)) for k, d in zip(kernel, dilation, strict=True)
        )
        options |= {"stride": stride, "padding": padding, "output_padding": output_padding}
        build = TRANSPOSED[order]
    else:
        padding = draw(st.sampled_from(["same", "valid", "numbers"]))
        options["padding"] = padding if padding != "numbers" else each(0, 2)
        options["stride"] = (1,) * order if padding == "same" else each(1, 3)
        modes = (
            ["zeros", "replicate", "circular"]
            if order == 3
            else ["zeros", "reflect", "replicate", "circular"]
        )
        options["padding_mode"] = draw(st.sampled_from(modes))
        build = CONVS[order]
    return _seeded(lambda: build(inputs, outputs, kernel, **options), seed), inputs
