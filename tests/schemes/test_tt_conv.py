"""A convolution held as the tensor train of its reshaped kernel (Garipov et al. 2016)."""

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.decompose import tt_params, tt_to_tensor
from tensorpress.measure import count_macs
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.tt_conv import TTConv
from tensorpress.schemes.tt_weight import TTWeight

GEOMETRIES = [
    nn.Conv1d(64, 64, 5, padding=2, stride=2),
    nn.Conv2d(64, 32, 3, padding=1, padding_mode="circular"),
    nn.Conv2d(32, 64, (3, 2), stride=(1, 2), dilation=(2, 1), bias=False),
    nn.Conv2d(64, 64, 3, padding="same"),
    nn.Conv3d(64, 64, (1, 2, 3), padding=(0, 1, 1)),
]


def press(layer: nn.Module, ranks: object) -> TTConv:
    pressed = press_layer(layer, "tt_conv", ranks)
    assert isinstance(pressed, TTConv)
    return pressed


@pytest.mark.parametrize("layer", GEOMETRIES, ids=str)
@pytest.mark.parametrize("batch", [(), (1,), (3,)])
def test_both_ways_compute_what_the_kernel_says(layer: nn.Module, batch: tuple[int, ...]) -> None:
    layer = layer.double()
    spec = describe_layer(layer)
    pressed = press(layer, 2)
    x = torch.randn(*batch, spec.inputs, *(7, 6, 5)[: spec.order], dtype=torch.float64)
    pressed.contracted = True
    expected = unpress_layer(pressed)(x)
    torch.testing.assert_close(pressed(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(pressed(x), expected)


def test_ranks_that_save_few_multiplications_rebuild_the_kernel() -> None:
    """A quarter of the dense layer's multiplications is the limit."""
    conv, modes = nn.Conv2d(128, 128, 3, padding=1), (4, 8, 4)
    method = scheme("tt_conv", {"row_modes": modes, "column_modes": modes})
    dense = 128 * 128 * 9
    for ranks, macs in {
        # 9·128·m₁·r₁ + m₁·r₁·n₂·m₂·r₂·n₃ + m₁·m₂·r₂·n₃·m₃
        (2, 2, 2): 9 * 128 * 4 * 2 + 4 * 2 * 64 * 2 * 4 + 32 * 2 * 16,
        (4, 4, 4): dense // 4,
        (4, 4, 5): dense,
        (9, 16, 16): dense,
    }.items():
        assert method.cost(conv, ranks, (6, 6)).macs == 36 * macs
        pressed = press_layer(conv, method, ranks)
        assert isinstance(pressed, TTConv)
        assert pressed.contracted == (macs < dense)
        assert count_macs(pressed, [torch.zeros(2, 128, 6, 6)]) == 36 * macs


def test_a_first_rank_above_the_kernels_size_adds_parameters_only() -> None:
    """The paper's r₀ = 16 for 3x3 kernels stands for the kernels of r₀ = 9.

    G₀ (9, 16) and G₁ (16, …) give what the identity and G₀·G₁ (9, …) give.
    """
    modes, ranks = (9, 16, 16, 16), (16, 16, 16)
    ends = zip((1, *ranks), modes, (*ranks, 1), strict=True)
    cores = [torch.randn(shape, dtype=torch.float64) for shape in ends]
    options = {"row_modes": (4, 4, 4), "column_modes": (4, 4, 4)}
    weight = TTWeight((64, 64, 3, 3), *options.values(), (9, 16, 16))
    merged = torch.tensordot(cores[0], cores[1], 1).squeeze(0)
    kernel = weight(torch.eye(9, dtype=torch.float64).unsqueeze(0), merged, *cores[2:])
    torch.testing.assert_close(weight.reshape(kernel), tt_to_tensor(cores))
    conv = nn.Conv2d(64, 64, 3, bias=False).double()
    conv.load_state_dict({"weight": kernel})
    pressed = press_layer(conv, tp.scheme("tt_conv", options), (9, 16, 16))
    torch.testing.assert_close(unpress_layer(pressed).weight, conv.weight)
    fewer = tt_params(modes, ranks) - sum(p.numel() for p in pressed.parameters())
    assert fewer == 7 * (9 + 16 * 16)
