from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.decompose import spectrum, truncated_svd
from tensorpress.errors import InvalidArgumentError

METHODS = ["gram", "exact", "randomized"]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def make_matrix(rows, columns, values, seed=0):
    """A matrix of the given singular values."""
    u = torch.linalg.qr(draw(rows, len(values), seed=seed)).Q
    v = torch.linalg.qr(draw(columns, len(values), seed=seed + 1)).Q
    return (u * values) @ v.mT


def power_law(count, power):
    return torch.arange(1, count + 1, dtype=torch.float64) ** -power


def measure_error(matrix, result):
    return float((matrix - result.to_tensor()).norm() / matrix.norm())


def assert_orthonormal(basis):
    eye = torch.eye(basis.shape[-1], dtype=basis.dtype)
    torch.testing.assert_close(basis.mT @ basis, eye.expand(*basis.shape[:-2], -1, -1))


@st.composite
def stacks_and_ranks(draw):
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    return (*batch, rows, columns), draw(st.integers(1, min(rows, columns)))


# Of these sizes the oversampled range is the whole space, so that "randomized" is exact as well.
@pytest.mark.parametrize("method", METHODS)
@given(stacks_and_ranks())
@settings(max_examples=30)
def test_the_best_approximation_is_found(method, case):
    shape, rank = case
    matrix = draw(*shape)
    result = truncated_svd(matrix, rank, method=method)
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(result.s, values[..., :rank], atol=1e-7, rtol=1e-7)
    best = float(values[..., rank:].norm() / matrix.norm())
    assert result.relative_error == pytest.approx(best, abs=1e-7)
    assert result.relative_error == pytest.approx(measure_error(matrix, result), abs=1e-9)
    assert_orthonormal(result.u)
    assert_orthonormal(result.v)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7), (3, 9, 6), (1, 5), (5, 1)])
def test_full_rank_reproduces_the_matrix(method, shape):
    matrix = draw(*shape)
    result = truncated_svd(matrix, min(shape[-2:]), method=method)
    assert measure_error(matrix, result) < 1e-9
    assert result.relative_error < 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rows", "columns"), [(40, 60), (60, 40)])
def test_ill_conditioned_matrices(method, rows, columns):
    matrix = make_matrix(rows, columns, 10.0 ** -torch.arange(16, dtype=torch.float64))
    errors = []
    for rank in range(1, 17):
        result = truncated_svd(matrix, rank, method=method)
        assert_orthonormal(result.u)
        assert_orthonormal(result.v)
        assert bool((result.s.diff() <= 0).all())
        assert result.relative_error == pytest.approx(measure_error(matrix, result), abs=1e-9)
        # Gram matrices know singular values down to 1e-8 of the largest.
        assert result.relative_error <= 2 * 10.0**-rank + 2e-8
        errors.append(result.relative_error)
    assert all(late <= early + 1e-8 for early, late in pairwise(errors))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (3, 7, 4)])
def test_zeros_constants_and_rank_deficient_matrices(method, shape):
    rank = min(shape[-2:])
    zero = truncated_svd(torch.zeros(shape), rank, method=method)
    assert zero.relative_error == 0
    assert float(zero.to_tensor().abs().max()) == 0
    for matrix in (torch.ones(shape).double(), draw(*shape[:-1], 2) @ draw(2, shape[-1])):
        result = truncated_svd(matrix, rank, method=method)
        assert_orthonormal(result.u)
        assert_orthonormal(result.v)
        assert measure_error(matrix, result) < 1e-7


@pytest.mark.parametrize("power", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("shape", [(80, 200), (200, 80)])
def test_a_random_range_is_nearly_the_best(shape, power):
    matrix = make_matrix(*shape, power_law(80, power))
    best = truncated_svd(matrix, 8, method="exact")
    result = truncated_svd(matrix, 8, method="randomized")
    assert best.relative_error <= result.relative_error <= 1.01 * best.relative_error
    assert result.relative_error == pytest.approx(measure_error(matrix, result), rel=1e-9)
    assert torch.equal(result.u, truncated_svd(matrix, 8, method="randomized").u)


@pytest.mark.parametrize("power", [0.0, 0.5, 3.0])
def test_low_ranks_of_large_matrices_have_at_most_one_percent_more_error(power):
    matrix = (make_matrix(512, 600, power_law(512, power)) * 1e30).float()
    best, result = truncated_svd(matrix, 16, method="gram"), truncated_svd(matrix, 16)
    assert not torch.equal(result.u, best.u)
    assert result.relative_error <= 1.01 * best.relative_error
    assert result.relative_error == pytest.approx(measure_error(matrix.double(), result), rel=1e-4)
    assert torch.equal(truncated_svd(matrix, 33).u, truncated_svd(matrix, 33, method="gram").u)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (2, 9, 6)])
def test_a_known_spectrum_gives_the_same(shape):
    matrix = draw(*shape)
    result, again = truncated_svd(matrix, 3), truncated_svd(matrix, 3, spectrum=spectrum(matrix))
    torch.testing.assert_close(again.to_tensor(), result.to_tensor())
    assert again.relative_error == pytest.approx(result.relative_error)


@pytest.mark.parametrize("method", METHODS)
def test_a_stack_is_its_matrices(method):
    stack = draw(3, 30, 20) * torch.tensor([1.0, 1e-3, 10.0])[:, None, None]
    result = truncated_svd(stack, 4, method=method)
    alone = [truncated_svd(matrix, 4, method=method) for matrix in stack]
    if method != "randomized":  # whose power iterations end for the stack as a whole
        expected = torch.stack([one.to_tensor() for one in alone])
        torch.testing.assert_close(result.to_tensor(), expected)
    energies = stack.square().sum((1, 2))
    discarded = energies * energies.new_tensor([one.relative_error**2 for one in alone])
    error = float((discarded.sum() / energies.sum()).sqrt())
    assert result.relative_error == pytest.approx(error, rel=1e-2 if method == METHODS[2] else 1e-6)


def test_parameters_do_not_count_the_singular_values():
    assert truncated_svd(draw(6, 9), 2).num_params == 2 * (6 + 9)
    assert truncated_svd(draw(5, 6, 9), 2).num_params == 5 * 2 * (6 + 9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_come_back_in_their_own(dtype, method, device):
    matrix = draw(6, 4).to(device, dtype)
    result = truncated_svd(matrix, 4, method=method)
    assert {t.dtype for t in (result.u, result.s, result.v)} == {dtype}
    assert result.u.device == matrix.device
    error = (matrix.double() - result.to_tensor().double()).norm() / matrix.double().norm()
    assert float(error) < 20 * torch.finfo(dtype).eps


def test_gradients_do_not_flow_into_a_decomposition():
    assert not truncated_svd(draw(4, 3).requires_grad_(), 2).u.requires_grad


@pytest.mark.parametrize("rank", [0, -1, 5])
@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (2, 7, 4)])
def test_ranks_out_of_range_are_refused(shape, rank):
    with pytest.raises(InvalidArgumentError, match=f"rank {rank} does not fit.*rank 1 to 4"):
        truncated_svd(draw(*shape), rank)


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_refused(method):
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        truncated_svd(torch.tensor([[1.0, float("inf")]]), 1, method=method)


def test_a_vector_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"shape \(3,\)"):
        truncated_svd(draw(3), 1)


def test_unknown_methods_and_spectra_of_other_matrices_are_refused():
    with pytest.raises(InvalidArgumentError, match="did you mean 'exact'"):
        truncated_svd(draw(4, 3), 1, method="exakt")
    for shape in ((7, 4), (4, 8)):
        with pytest.raises(InvalidArgumentError, match="does not belong"):
            truncated_svd(draw(4, 7), 1, spectrum=spectrum(draw(*shape)))
        with pytest.raises(InvalidArgumentError, match="does not belong"):
            truncated_svd(draw(8, 7), 1, spectrum=spectrum(draw(*shape)))
