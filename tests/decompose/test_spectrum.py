import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.decompose import leading_basis, singular_values, spectrum
from tensorpress.decompose.spectrum import GRAM_BLOCK
from tensorpress.errors import InvalidArgumentError

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def make_matrix(rows, columns, values, seed=0):
    """A matrix of the given singular values."""
    count = len(values)
    u = torch.linalg.qr(draw(rows, count, seed=seed)).Q
    v = torch.linalg.qr(draw(columns, count, seed=seed + 1)).Q
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.mT


def assert_orthonormal(basis):
    eye = torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)
    torch.testing.assert_close(basis.mT @ basis, eye.expand(*basis.shape[:-2], -1, -1))


MATRICES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))


@given(MATRICES)
@settings(max_examples=40)
def test_values_agree_with_numpy(case):
    rows, columns, seed = case
    matrix = draw(rows, columns, seed=seed)
    expected = np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(spectrum(matrix).values, expected, atol=1e-7 * expected[0])
    np.testing.assert_allclose(singular_values(matrix), expected, atol=1e-7 * expected[0])


@given(MATRICES)
@settings(max_examples=40)
def test_vectors_are_those_of_the_smaller_side(case):
    rows, columns, seed = case
    matrix = draw(rows, columns, seed=seed)
    result = spectrum(matrix)
    assert (result.rows, result.columns) == (rows, columns)
    assert_orthonormal(result.vectors)
    side = matrix if rows <= columns else matrix.mT
    energies = (result.vectors.mT @ side).norm(dim=1)
    torch.testing.assert_close(energies, result.values, atol=1e-7, rtol=1e-7)


# Above the size of a block, where the Gram matrix is put together from several.
@pytest.mark.parametrize(
    ("rows", "columns"), [(GRAM_BLOCK + 1, 300), (300, GRAM_BLOCK + 1), (3, 700)]
)
def test_large_matrices(rows, columns):
    matrix = draw(rows, columns)
    result = spectrum(matrix)
    torch.testing.assert_close(result.values, torch.linalg.svdvals(matrix), atol=1e-6, rtol=1e-9)
    torch.testing.assert_close(singular_values(matrix), result.values, atol=1e-6, rtol=1e-9)
    assert_orthonormal(result.vectors)


@pytest.mark.parametrize("shape", [(4, 3, 7), (2, 2, 7, 3)])
def test_a_stack_is_its_matrices(shape):
    stack = draw(*shape)
    result, values, bases = spectrum(stack), singular_values(stack), leading_basis(stack, 2)
    for index in np.ndindex(*shape[:-2]):
        one = spectrum(stack[index])
        torch.testing.assert_close(result.values[index], one.values)
        torch.testing.assert_close(values[index], one.values)
        basis = leading_basis(stack[index], 2)
        torch.testing.assert_close(bases[index] @ bases[index].mT, basis @ basis.mT)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (2, 9, 4)])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_basis_spans_the_leading_directions(shape, rank):
    matrix = draw(*shape)
    u = torch.linalg.svd(matrix, full_matrices=False).U[..., :rank]
    for known in (None, spectrum(matrix)):
        basis = leading_basis(matrix, rank, known)
        assert basis.shape == u.shape
        assert_orthonormal(basis)
        # In order, so that every shorter basis is a part of it.
        torch.testing.assert_close((basis * u).sum(-2).abs(), torch.ones_like(u[..., 0, :]))


@pytest.mark.parametrize(("rows", "columns"), [(12, 8), (8, 12), (10, 10), (30, 3), (40, 6)])
@pytest.mark.parametrize("values", [[5.0, 3.0], [5.0, 1e-4], [5.0, 3.0, 1e-9], [5.0]])
def test_rank_deficient_matrices_are_completed(rows, columns, values):
    matrix = make_matrix(rows, columns, values)
    for rank in range(1, rows + 1):
        basis = leading_basis(matrix, rank)
        assert basis.shape == (rows, rank)
        assert_orthonormal(basis)
        missed = matrix - basis @ (basis.mT @ matrix)
        best = float(torch.tensor(values[rank:], dtype=torch.float64).norm())
        assert float(missed.norm()) <= best + 1e-7


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (3, 7, 4), (1, 1), (1, 5), (5, 1)])
def test_zero_and_constant_matrices(shape):
    for matrix in (torch.zeros(shape), torch.ones(shape)):
        result = spectrum(matrix)
        assert bool(result.values.isfinite().all())
        for rank in (1, shape[-2]):
            assert_orthonormal(leading_basis(matrix.double(), rank, result))
    torch.testing.assert_close(result.values[..., 0], result.values.square().sum(-1).sqrt())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_other_dtypes(shape, dtype, device):
    matrix = draw(*shape).to(device, dtype)
    result = spectrum(matrix)
    assert result.values.dtype == result.vectors.dtype == singular_values(matrix).dtype
    assert result.values.dtype == torch.float64
    torch.testing.assert_close(result.values, torch.linalg.svdvals(matrix.double()))
    basis = leading_basis(matrix, 2)
    assert (basis.dtype, basis.device) == (dtype, matrix.device)


def test_ranks_out_of_range_are_refused():
    for rank in (0, -1, 5):
        with pytest.raises(InvalidArgumentError, match=f"rank {rank} does not fit 4 rows"):
            leading_basis(draw(4, 7), rank)


def test_a_spectrum_of_another_matrix_is_refused():
    for other in (draw(7, 4), draw(4, 8), draw(2, 4, 7)):
        with pytest.raises(InvalidArgumentError, match=r"matrix of shape \(4, 7\)"):
            leading_basis(draw(4, 7), 2, spectrum(other))


@pytest.mark.parametrize("function", [spectrum, singular_values, lambda m: leading_basis(m, 1)])
def test_vectors_and_values_that_are_not_finite_are_refused(function):
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        function(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(InvalidArgumentError, match=r"stack of matrices, got shape \(3,\)"):
        function(draw(3))
