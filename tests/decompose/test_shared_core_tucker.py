from itertools import pairwise

import pytest
import torch

from tensorpress.decompose import hooi, shared_tucker, tucker_to_tensor
from tensorpress.errors import InvalidArgumentError


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def loss(fit):
    return sum(error**2 for error in fit.relative_errors) / len(fit.relative_errors)


def plant_terms(ranks, shapes):
    core = draw(*ranks)
    return [
        tucker_to_tensor(core, [draw(n, k, seed=n + 7 * i) for n, k in zip(s, ranks, strict=True)])
        for i, s in enumerate(shapes, start=1)
    ]


def test_loss_never_grows_with_sweeps():
    tensors = [draw(7, 6, 5), draw(8, 4, 4, seed=1), draw(5, 5, 1, seed=2)]
    losses = [loss(shared_tucker(tensors, (3, 3, 3), max_iter=n, tol=-1)) for n in range(1, 10)]
    assert all(late <= early + 1e-12 for early, late in pairwise(losses))


def test_errors_are_those_of_the_rebuilt_tensors():
    tensors = [draw(7, 6, 5), 100 * draw(8, 4, 1, seed=1)]
    fit = shared_tucker(tensors, (3, 3, 2))
    for tensor, matrices, error in zip(tensors, fit.factors, fit.relative_errors, strict=True):
        rebuilt = tucker_to_tensor(fit.core, matrices)
        assert error == pytest.approx(float((tensor - rebuilt).norm() / tensor.norm()), abs=1e-6)


@pytest.mark.parametrize(("shape", "ranks"), [((9, 8, 7), (3, 3, 3)), ((12, 10), (4, 4))])
def test_one_tensor_is_fitted_as_well_as_by_hooi(shape, ranks):
    tensor = draw(*shape)
    alone = hooi(tensor, ranks, max_iter=500).relative_error
    assert shared_tucker([tensor], ranks).relative_errors[0] <= alone + 1e-3


# Larger planted cores are approached too, but alternating least squares takes thousands of sweeps.
@pytest.mark.parametrize(
    ("ranks", "shapes"),
    [
        ((3, 3), [(8, 7), (9, 6), (5, 5)]),
        ((2, 2, 2), [(8, 7, 6), (6, 9, 5)]),
        ((2, 2, 2), [(8, 7, 6), (6, 9, 5), (10, 5, 7)]),
    ],
)
def test_a_planted_shared_core_is_recovered(ranks, shapes):
    fit = shared_tucker(plant_terms(ranks, shapes), ranks, max_iter=400, tol=1e-12)
    assert fit.converged
    assert max(fit.relative_errors) < 1e-4


def test_the_fit_does_not_depend_on_the_scale_of_a_tensor():
    tensors = [draw(6, 5, 4), draw(5, 5, 5, seed=1)]
    fit = shared_tucker(tensors, (2, 2, 2))
    rescaled = shared_tucker([1e-4 * tensors[0], 1e4 * tensors[1]], (2, 2, 2))
    assert fit.relative_errors == pytest.approx(rescaled.relative_errors, abs=1e-6)


def test_lower_orders_and_ranks_above_the_modes():
    tensors = [draw(9, 8, 7), draw(6, 5, 1, seed=1), draw(4, 1, 1, seed=2)]
    fit = shared_tucker(tensors, (4, 4, 4))
    assert [m.shape for m in fit.factors[2]] == [(4, 4), (1, 4), (1, 4)]
    assert fit.relative_errors[2] < 1e-3
    assert fit.relative_errors[1] < 0.8


def test_a_zero_tensor_among_others():
    fit = shared_tucker([torch.zeros(4, 3), draw(4, 3).float()], (3, 3))
    assert fit.relative_errors == pytest.approx((0, 0), abs=1e-6)
    assert float(tucker_to_tensor(fit.core, fit.factors[0]).abs().max()) == 0


def test_a_core_larger_than_every_tensor_fits_exactly():
    fit = shared_tucker([draw(3, 2), draw(2, 2, seed=1)], (5, 5))
    assert max(fit.relative_errors) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_each_tensor_keeps_its_dtype(dtype):
    fit = shared_tucker([draw(4, 3).to(dtype), draw(5, 3).float()], (2, 2))
    assert [m.dtype for m, _ in fit.factors] == [dtype, torch.float32]


@pytest.mark.parametrize(
    ("tensors", "ranks"),
    [([], (2, 2)), ([draw(3, 3, 3)], (2, 2)), ([draw(3, 3)], (0, 2)), ([draw(3, 3)], ())],
)
def test_orders_and_ranks_that_do_not_fit_are_refused(tensors, ranks):
    with pytest.raises(InvalidArgumentError, match="needs tensors of order"):
        shared_tucker(tensors, ranks)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        shared_tucker([torch.tensor([[1.0, float("inf")]])], (1, 1))
