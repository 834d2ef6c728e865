"""Kernels that are best at once, beside the search for them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorpress.decompose import truncated_svd
from tensorpress.reconstruct.alternating_fit import fit_kernels, response_error
from tensorpress.reconstruct.kernel_model import Composition
from tensorpress.schemes.channel_pruning import PrunedLayer
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.registry import scheme


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(groups: int, n: int, rank: int) -> Tensor:
    roots = random(groups, n, rank, seed=1)
    return roots @ roots.mT / rank


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 3),
    out=st.integers(2, 9),
    inputs=st.integers(2, 9),
    rank=st.integers(1, 9),
    rows=st.integers(1, 20),
    scaled=st.booleans(),
)
def test_the_error_is_the_discarded_energy_of_the_responses(
    groups: int, out: int, inputs: int, rank: int, rows: int, scaled: bool
) -> None:
    rank = min(rank, out, inputs)
    target, second = random(groups, out, inputs), second_moment(groups, inputs, rows)
    composition = Composition(groups)
    if scaled:
        composition = composition.scaled(random(groups, out, seed=2).abs() + 0.1)
    shapes = [torch.empty(groups, rank, inputs), torch.empty(groups, out, rank)]
    found = composition.closest(shapes, target, second)
    assert found is not None
    energies = torch.linalg.eigvalsh(target @ second @ target.mT)
    error = response_error(composition(found), target, second)
    total = float(energies.sum())
    assert error == pytest.approx(float(energies[:, : out - rank].sum()), abs=1e-8 * total)


def test_a_convolution_in_a_norm_is_no_worse_than_any_descent_from_it() -> None:
    target, second = random(2, 6, 3, 3, 3), second_moment(2, 27, 40)
    start = [random(2, 4, 3, 3, 3, seed=3), random(2, 6, 4, 1, 1, seed=4)]
    fit = fit_kernels(start, target, second)
    nudged = [kernel + 1e-3 * random(*kernel.shape, seed=5) for kernel in fit.kernels]
    assert response_error(Composition(2)(nudged), target, second) > fit.losses[-1]


def test_without_data_the_weight_decides() -> None:
    """Of equally good kernels the one that keeps most of the weight is taken."""
    target = random(1, 7, 5)
    shapes = [torch.empty(1, 2, 5), torch.empty(1, 7, 2)]
    found = Composition(1).closest(shapes, target, torch.zeros(1, 5, 5).double())
    assert found is not None
    torch.testing.assert_close(Composition(1)(found)[0], truncated_svd(target[0], 2).to_tensor())


def test_inputs_in_a_subspace_leave_the_rest_of_the_rank_to_the_weight() -> None:
    target, seen = random(1, 7, 5), torch.zeros(1, 5, 5).double()
    seen[0, 0, 0] = 1
    shapes = [torch.empty(1, 2, 5), torch.empty(1, 7, 2)]
    found = Composition(1).closest(shapes, target, seen)
    assert found is not None
    whole = Composition(1)(found)
    torch.testing.assert_close(whole[0, :, 0], target[0, :, 0], atol=1e-6, rtol=1e-6)
    response = target[0, :, :1] / target[0, :, :1].norm()
    rest = target[0] - response @ response.T @ target[0]
    left = float((target - whole).square().sum())
    assert left == pytest.approx(
        truncated_svd(rest, 1).relative_error ** 2 * float(rest.square().sum()), rel=1e-5
    )


def test_other_chains_have_no_closed_form() -> None:
    target, second = random(1, 6, 3, 3, 3), second_moment(1, 27, 40)
    rows = [torch.empty(1, 4, 3, 3, 1), torch.empty(1, 6, 4, 1, 3)]
    assert Composition(1).closest(rows, target, second) is None
    matrix = [torch.empty(1, 4, 3, 3, 3), torch.empty(1, 6, 4, 1, 1)]
    assert Composition(1).closest(matrix, target, second) is not None
    assert Composition(1, lambda kernels: kernels[0]).closest(matrix, target, second) is None


def pressed(name: str, ranks: tuple[int, ...], groups: int, chosen: list[int]) -> PrunedLayer:
    conv = torch.nn.Conv2d(6 * groups, 8 * groups, 3, groups=groups)
    layer = scheme(name).skeleton(describe_layer(conv), ranks, like=conv.weight)
    assert isinstance(layer, PrunedLayer)
    layer.select(torch.tensor([chosen] * groups))
    return layer


@pytest.mark.parametrize("groups", [1, 2])
def test_on_chosen_channels_it_is_the_regression_on_them(groups: int) -> None:
    layer, target = pressed("channel_pruning", (2,), groups, [1, 4]), random(groups, 8, 6, 3, 3)
    rows = random(groups, 100, 54, seed=1)
    scale = random(groups, 8, seed=2).abs() + 0.1
    fit = fit_kernels(
        [random(groups, 8, 2, 3, 3, seed=3)],
        target,
        rows.mT @ rows,
        Composition.of(layer).scaled(scale),
    )
    columns = [*range(9, 18), *range(36, 45)]
    wanted = torch.linalg.lstsq(rows[..., columns], rows @ target.flatten(2).mT).solution.mT
    found = fit.kernels[0].flatten(2) * scale[..., None]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert len(fit.losses) == 2


@pytest.mark.parametrize("groups", [1, 2])
def test_of_a_sum_no_descent_finds_better_kernels(groups: int) -> None:
    layer, target = pressed("low_rank_sparse", (2, 2), groups, [0, 3]), random(groups, 8, 6, 3, 3)
    second, scale = second_moment(groups, 54, 80), random(groups, 8, seed=2).abs() + 0.1
    start = [
        0.1 * random(groups, *shape, seed=seed)
        for seed, shape in enumerate([(8, 2, 3, 3), (2, 6, 3, 3), (8, 2, 1, 1)], 3)
    ]
    exact, descent = (
        fit_kernels(start, target, second, composition.scaled(scale), sweeps=500, tolerance=1e-7)
        for composition in (Composition.of(layer), Composition(groups, layer.compose))
    )
    assert len(exact.losses) == 2
    assert exact.losses[-1] <= descent.losses[-1]
    assert exact.losses[-1] == pytest.approx(descent.losses[-1], rel=1e-2)
