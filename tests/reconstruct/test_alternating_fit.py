"""Fitting chains in the norm of their inputs, beside closed forms."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.alternating_fit import conjugate_gradients, fit_kernels, response_error
from tensorpress.schemes.canonical_kernel import layer_kernel
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.registry import scheme
from tensorpress.schemes.stages import compose

SCHEMES = {
    "channel_svd": (3,),
    "spatial_svd": (4,),
    "tucker2": (2, 3),
    "cp": (4,),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(n: int, groups: int = 1, seed: int = 1, rank: int | None = None) -> Tensor:
    roots = random(groups, n, rank or 2 * n, seed=seed)
    return roots @ roots.mT / roots.shape[-1]


def started(name: str, conv: nn.Module, ranks: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    spec = describe_layer(conv)
    kernel = to_working_precision(layer_kernel(conv, spec))
    chain = scheme(name)
    return chain.factorize(spec, kernel, chain.attainable(spec, ranks), ()).factors, kernel  # type: ignore[attr-defined]


def test_three_matrices_reach_the_closed_form_of_a_known_covariance() -> None:
    """The optimum of rank r is U Uᵀ W, U the first eigenvectors of W Σ Wᵀ, by descent too."""
    kernel, second = random(1, 8, 12), second_moment(12)
    values, vectors = torch.linalg.eigh(kernel[0] @ second[0] @ kernel[0].T)
    best = vectors[:, -3:] @ vectors[:, -3:].T @ kernel[0]
    start = [random(1, 3, 12, seed=2), random(1, 3, 3, seed=4), random(1, 8, 3, seed=3)]
    fit = fit_kernels(start, kernel, second, sweeps=200, tolerance=1e-12)
    assert fit.losses[-1] == pytest.approx(float(values[:-3].sum()), rel=1e-6)
    torch.testing.assert_close(compose(fit.kernels, 1)[0], best, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_objective_never_rises_and_falls_below_that_of_the_weights(
    name: str, groups: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, groups=groups)
    kernels, dense = started(name, conv, SCHEMES[name])
    second = second_moment(dense[0, 0].numel(), groups, rank=10)
    fit = fit_kernels(kernels, dense, second)
    for before, after in pairwise(fit.losses):
        assert after <= before + 1e-12 * fit.losses[0]
    assert fit.losses[-1] < 0.9 * fit.losses[0]
    shapes = [kernel.shape for kernel in fit.kernels]
    assert shapes == [kernel.shape for kernel in kernels]


def test_identity_moments_give_what_the_weights_give() -> None:
    conv = nn.Conv2d(6, 7, 3)
    kernels, dense = started("channel_svd", conv, (3,))
    fit = fit_kernels(kernels, dense, torch.eye(54).double()[None])
    assert fit.losses[-1] == pytest.approx(fit.losses[0], rel=1e-6)


def test_inputs_in_a_subspace_that_the_chain_can_hold_leave_no_error() -> None:
    kernel, second = random(1, 8, 12), second_moment(12, rank=2)
    start = [random(1, 2, 12, seed=2), random(1, 2, 2, seed=4), random(1, 8, 2, seed=3)]
    fit = fit_kernels(start, kernel, second, sweeps=100, tolerance=0)
    zero = response_error(torch.zeros_like(kernel), kernel, second)
    assert fit.losses[-1] < 1e-10 * zero
    assert all(bool(torch.isfinite(kernel).all()) for kernel in fit.kernels)


def test_groups_are_fitted_as_layers_of_their_own() -> None:
    kernel, second = random(2, 5, 6), second_moment(6, groups=2)
    start = [random(2, 2, 6, seed=2), random(2, 2, 2, seed=4), random(2, 5, 2, seed=3)]
    together = fit_kernels(start, kernel, second, sweeps=300, tolerance=0)
    for group in range(2):
        own = [part[group : group + 1] for part in start]
        alone = fit_kernels(
            own, kernel[group : group + 1], second[group : group + 1], sweeps=300, tolerance=0
        )
        torch.testing.assert_close(
            compose(together.kernels, 2)[group], compose(alone.kernels, 1)[0], atol=1e-4, rtol=1e-4
        )


def test_a_fit_ends_with_the_first_sweep_that_changes_nothing() -> None:
    start = [random(1, 3, 12), random(1, 8, 3, seed=1)]
    dense = compose(start, 1)
    places = range(2)  # sweeps, in place of the closed form of two kernels
    exact = fit_kernels(start, dense, second_moment(12), places=places, tolerance=0)
    assert exact.losses == [0, 0]
    unseen = torch.zeros(1, 12, 12, dtype=torch.float64)
    assert fit_kernels(start, 2 * dense, unseen, places=places).losses == [0, 0]


def test_inputs_that_are_all_zero_change_nothing() -> None:
    start = [random(1, 2, 6), random(1, 2, 2, seed=3), random(1, 5, 2, seed=1)]
    fit = fit_kernels(start, random(1, 5, 6, seed=2), torch.zeros(1, 6, 6).double())
    for found, before in zip(fit.kernels, start, strict=True):
        torch.testing.assert_close(found, before)


def test_shapes_that_do_not_fit_are_told() -> None:
    start = [random(1, 2, 6), random(1, 5, 2)]
    with pytest.raises(InvalidArgumentError, match=r"have shape \(1, 6, 6\)"):
        fit_kernels(start, random(1, 5, 6), torch.eye(5).double()[None])
    with pytest.raises(InvalidArgumentError, match=r"shape \(1, 5, 6\), not \(1, 4, 6\)"):
        fit_kernels(start, random(1, 4, 6), torch.eye(6).double()[None])


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 12), seed=st.integers(0, 1000))
def test_conjugate_gradients_solve_symmetric_systems(size: int, seed: int) -> None:
    matrix = second_moment(size, seed=seed)[0] + torch.eye(size).double()
    right = random(size, seed=seed + 1)
    found = conjugate_gradients(lambda x: matrix @ x, right, iterations=10 * size)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right), atol=1e-6, rtol=1e-6)
