"""Errors, parameters and multiplications by the formulas of the papers the schemes come from."""

from math import prod

import pytest
import torch
from torch import nn

from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.tt_matrix import TrainOfMatrix
from tensorpress.schemes.tt_weight import TTWeightScheme


def seeded(build):
    torch.manual_seed(0)
    return build().double()


def residual2(name, layer, rank):
    pressed = press_layer(layer, name, rank)
    return float((scheme(name).compose(pressed) - layer.weight.detach()).square().sum())


def test_spatial_svd_leaves_the_discarded_energy():
    """Tai et al., theorem 1: the matrix of rows (c, x) and columns (y, n), its tail past K."""
    layer = seeded(lambda: nn.Conv2d(6, 8, (3, 5)))
    matrix = layer.weight.detach().permute(1, 2, 3, 0).reshape(6 * 3, 5 * 8)
    values2 = torch.linalg.svdvals(matrix).square()
    for rank in (1, 7, 17, 18):
        expected = float(values2[rank:].sum())
        assert residual2("spatial_svd", layer, rank) == pytest.approx(expected, abs=1e-12)
    turned = layer.weight.detach().permute(1, 3, 2, 0).reshape(6 * 5, 3 * 8)
    expected = float(torch.linalg.svdvals(turned).square()[4:].sum())
    assert residual2("spatial_svd_horizontal", layer, 4) == pytest.approx(expected)


def test_spatial_svd_is_its_two_filter_banks():
    """Tai et al., theorem 1: V = U·√D and H = V·√D of the SVD, up to sign."""
    layer = seeded(lambda: nn.Conv2d(4, 6, 3))
    matrix = layer.weight.detach().permute(1, 2, 3, 0).reshape(4 * 3, 3 * 6)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    vertical, horizontal = press_layer(layer, "spatial_svd", 3)
    rows = vertical.weight.detach().reshape(3, 12).mT
    columns = horizontal.weight.detach()[:, :, 0].permute(2, 0, 1).reshape(18, 3)
    for k in range(3):
        assert abs(rows[:, k] @ left[:, k]) == pytest.approx(rows[:, k].norm())
        assert abs(columns[:, k] @ right[k]) == pytest.approx(columns[:, k].norm())
        assert rows[:, k].norm() * columns[:, k].norm() == pytest.approx(float(values[k]))


@pytest.mark.parametrize(("inputs", "outputs", "size"), [(16, 32, 3), (64, 64, 5), (6, 10, 7)])
def test_spatial_svd_is_cheaper_below_the_rank_of_tai(inputs, outputs, size):
    """Cheaper iff K < d·N·C / (N + C): in parameters, and without strides in multiplications."""
    layer = nn.Conv2d(inputs, outputs, size, padding="same", bias=False, device="meta")
    (largest,) = scheme("spatial_svd").largest_ranks(describe_layer(layer))
    dense = prod(layer.weight.shape)
    for rank in range(1, largest + 1):
        cost = scheme("spatial_svd").cost(layer, rank, (20, 20))
        assert cost.params == rank * size * (inputs + outputs)
        cheaper = rank * (outputs + inputs) < size * outputs * inputs
        assert (cost.params < dense) == (cost.macs < dense * 400) == cheaper


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Conv2d(6, 8, 3),
        lambda: nn.Conv1d(6, 8, 3, groups=2),
        lambda: nn.ConvTranspose2d(6, 8, 3),
        lambda: nn.Linear(9, 7),
        lambda: nn.Embedding(9, 7),
    ],
)
def test_channel_svd_is_tucker1_of_the_output_mode(build):
    layer = seeded(build)
    one, other = (press_layer(layer, name, 3) for name in ("channel_svd", "tucker1_out"))
    assert all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize(("name", "mode"), [("channel_svd", 0), ("tucker1_in", 1)])
def test_tucker1_projects_the_unfolding_on_its_leading_directions(name, mode):
    layer = seeded(lambda: nn.Conv2d(6, 8, 3))
    unfolding = layer.weight.detach().movedim(mode, 0).flatten(1)
    basis = torch.linalg.svd(unfolding, full_matrices=False)[0][:, :4]
    found = scheme(name).compose(press_layer(layer, name, 4)).movedim(mode, 0).flatten(1)
    torch.testing.assert_close(found, basis @ basis.mT @ unfolding, atol=1e-10, rtol=1e-10)


def test_channel_svd_costs_as_zhang_et_al_say():
    """d′·k²·c + d·d′ a position, sec. 3.1."""
    layer = nn.Conv2d(64, 128, 3, padding=1, stride=2, bias=False, device="meta")
    cost = scheme("channel_svd").cost(layer, 40, (16, 16))
    assert cost.params == 40 * 9 * 64 + 128 * 40
    assert cost.macs == 8 * 8 * cost.params


def test_tucker2_of_a_linear_is_three_matrices_with_the_error_of_the_svd():
    """y = A·G·Bᵀ·x + b."""
    layer = seeded(lambda: nn.Linear(20, 14))
    pressed = press_layer(layer, "tucker2", (5, 5))
    b_t, g, a = (part.weight.detach() for part in pressed)  # type: ignore[attr-defined]
    assert (a.shape, g.shape, b_t.shape) == ((14, 5), (5, 5), (5, 20))
    x = torch.randn(3, 20, dtype=torch.float64)
    torch.testing.assert_close(pressed(x), x @ (a @ g @ b_t).mT + layer.bias)
    tail = torch.linalg.svdvals(layer.weight.detach())[5:].square().sum()
    assert residual2("tucker2", layer, (5, 5)) == pytest.approx(float(tail))
    assert residual2("tucker2", layer, (5, 5)) == pytest.approx(residual2("channel_svd", layer, 5))
    cost = scheme("tucker2").cost(layer, (5, 5), (7,))
    assert cost.params == 20 * 5 + 5 * 5 + 5 * 14 + 14
    assert cost.macs == 7 * (cost.params - 14)


def test_the_ranks_of_a_matrix_are_equal():
    """More columns of A than of B would multiply zeros."""
    assert press_layer(nn.Linear(20, 14), "tucker2", (3, 9)).ranks == (3, 3)


@pytest.mark.parametrize(("size", "stride"), [((3, 3), (1, 1)), ((3, 5), (2, 3))])
def test_tucker2_costs_as_kim_et_al_say(size, stride):
    """S·R₃ + d²·R₃·R₄ + T·R₄; multiplied at H·W, H′·W′ and H′·W′ positions."""
    s, t, r3, r4 = 24, 32, 7, 9
    padding = tuple(k // 2 for k in size)
    layer = nn.Conv2d(s, t, size, stride=stride, padding=padding, device="meta")
    cost = scheme("tucker2").cost(layer, (r3, r4), (18, 30))
    core = prod(size) * r3 * r4
    assert cost.params == s * r3 + core + t * r4 + t
    outputs = (18 // stride[0]) * (30 // stride[1])
    assert cost.macs == 18 * 30 * s * r3 + outputs * (core + t * r4)


def test_tucker2_of_a_volume_has_a_core_of_three_spatial_modes():
    layer = nn.Conv3d(8, 12, (3, 2, 5), bias=False, device="meta")
    cost = scheme("tucker2").cost(layer, (3, 4), (6, 6, 6))
    assert cost.params == 8 * 3 + 30 * 3 * 4 + 12 * 4
    assert cost.macs == 216 * 24 + 4 * 5 * 2 * (360 + 48)


@pytest.mark.parametrize("name", ["cp", "cp_nls", "cp_corrected"])
def test_cp_costs_as_lebedev_et_al_say(name):
    """Four convolutions of R·(S + d + d + T), sec. 3.2, each after the strides before it."""
    s, t, d, rank = 16, 24, 5, 11
    layer = nn.Conv2d(s, t, d, padding=2, stride=(2, 3), bias=False, device="meta")
    cost = scheme(name).cost(layer, rank, (12, 18))
    assert cost.params == rank * (s + d + d + t)
    rows, both = 6 * 18, 6 * 6
    assert cost.macs == rank * (12 * 18 * s + rows * d + both * d + both * t)
    pressed = scheme(name).skeleton(describe_layer(layer), (rank,), like=layer.weight)
    assert [part.groups for part in pressed] == [1, rank, rank, 1]  # type: ignore[attr-defined]
    assert [part.kernel_size for part in pressed] == [(1, 1), (d, 1), (1, d), (1, 1)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["cp", "cp_nls"])
def test_cp_of_rank_one_finds_a_planted_term(name):
    factors = [torch.randn(n, dtype=torch.float64) for n in (6, 5, 3, 3)]
    layer = seeded(lambda: nn.Conv2d(5, 6, 3))
    layer.weight.data = torch.einsum("o,i,x,y->oixy", *factors)
    pressed = press_layer(layer, name, 1)
    assert pressed.relative_error < 1e-7
    torch.testing.assert_close(pressed.dense_weight(), layer.weight.detach(), atol=1e-7, rtol=1e-6)


def test_a_train_of_convolutions_costs_the_sum_of_its_cores():
    layer = nn.Conv2d(8, 12, (3, 5), stride=(1, 2), padding=(1, 2), device="meta")
    cost = scheme("tensor_train").cost(layer, (4, 6, 5), (10, 10))
    assert cost.params == 8 * 4 + 4 * 3 * 6 + 6 * 5 * 5 + 5 * 12 + 12
    assert cost.macs == 100 * (8 * 4 + 4 * 3 * 6) + 50 * (6 * 5 * 5 + 5 * 12)


def test_a_train_is_within_the_bound_of_its_unfoldings():
    """Oseledets 2011, theorem 2.2: ‖A − B‖² ≤ Σ_k ε_k², and no less than the largest ε_k."""
    layer = seeded(lambda: nn.Conv2d(6, 8, 3))
    tensor = layer.weight.detach().permute(1, 2, 3, 0)
    ranks = (3, 5, 4)
    tails = [
        float(torch.linalg.svdvals(tensor.flatten(0, k).flatten(1))[rank:].square().sum())
        for k, rank in enumerate(ranks)
    ]
    assert max(tails) - 1e-12 <= residual2("tensor_train", layer, ranks) <= sum(tails) + 1e-12


@pytest.mark.parametrize(("rank", "params"), [(1, 144), (2, 528), (4, 2016)])
def test_the_fully_connected_layer_of_vgg(rank, params):
    """Novikov et al. 2015, table 2: 25088×4096 in six cores."""
    form = TrainOfMatrix("tt", "", row_modes=(4,) * 6, column_modes=(2, 7, 8, 8, 7, 4))
    spec = describe_layer(nn.Linear(25088, 4096, device="meta"))
    assert form.refusal(spec) is None
    assert form.params(spec, (rank,) * 5) == params + 4096
    assert form.cost(nn.Linear(25088, 4096, bias=False, device="meta"), rank).params == params
    if rank == 2:
        assert round(25088 * 4096 / params) == 194_622


@pytest.mark.parametrize(
    ("size", "ranks", "params"),
    [
        (3, (9, 16, 10), 9 * 9 + 9 * (4 * 2) * 16 + 16 * (4 * 8) * 10 + 10 * (8 * 4)),
        (1, (8, 16), 8 * (4 * 2) + 8 * (4 * 8) * 16 + 16 * (8 * 4)),
    ],
)
def test_a_convolution_in_tensor_train_format_has_the_cores_of_garipov_et_al(size, ranks, params):
    """ℓ²·r₀ + Σ_k r_{k−1}·c_k·s_k·r_k of the reshaped kernel; a 1×1 kernel is a TT-matrix."""
    layer = nn.Conv2d(128, 64, size, bias=False, device="meta")
    form = TTWeightScheme("tt", "", row_modes=(2, 8, 4), column_modes=(4, 4, 8))
    cost = form.cost(layer, ranks, (12, 12))
    assert cost.params == params
    assert cost.macs == (13 - size) ** 2 * prod(layer.weight.shape)
