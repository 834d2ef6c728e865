from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tensorpress.decompose import (
    hooi,
    mode_product,
    spectrum,
    st_hosvd,
    tucker_params,
    tucker_to_tensor,
    unfold,
)
from tensorpress.errors import InvalidArgumentError

tl = pytest.importorskip("tensorly")
partial_tucker = pytest.importorskip("tensorly.decomposition").partial_tucker
tucker = pytest.importorskip("tensorly.decomposition").tucker

METHODS = [hooi, st_hosvd]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def make_tensor(*shape, power=0.7, seed=0):
    """A tensor whose unfoldings have falling spectra, as trained weights do."""
    core = draw(*shape, seed=seed)
    for mode, n in enumerate(shape):
        scales = torch.arange(1, n + 1, dtype=core.dtype) ** -power
        core = core * scales.reshape([-1 if i == mode else 1 for i in range(len(shape))])
    bases = [torch.linalg.qr(draw(n, n, seed=seed + 1 + i)).Q for i, n in enumerate(shape)]
    return tucker_to_tensor(core, bases)


def measure_error(tensor, result):
    tensor = tensor.double()
    return float((tensor - result.to_tensor().double()).norm() / tensor.norm())


def discarded_energy(tensor, mode, rank):
    """Relative norm of what a truncation of one mode alone discards: no decomposition does less."""
    return float(torch.linalg.svdvals(unfold(tensor, mode))[rank:].norm() / tensor.norm())


def assert_orthonormal(basis):
    eye = torch.eye(basis.shape[-1], dtype=basis.dtype)
    torch.testing.assert_close(basis.mT @ basis, eye.expand(*basis.shape[:-2], -1, -1))


@st.composite
def truncations(draw):
    """A shape, some of its modes in any order, and a rank for each of these."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    modes = draw(st.permutations(range(len(shape))))[: draw(st.integers(1, len(shape)))]
    return shape, modes, [draw(st.integers(1, shape[mode])) for mode in modes]


@pytest.mark.parametrize("method", METHODS)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
@settings(max_examples=25)
def test_full_ranks_reproduce_the_tensor(method, shape):
    tensor = draw(*shape)
    result = method(tensor, shape)
    assert measure_error(tensor, result) < 1e-9
    assert result.relative_error < 1e-9
    assert result.converged


@pytest.mark.parametrize("method", METHODS)
@given(truncations())
@settings(max_examples=40)
def test_the_error_is_the_energy_outside_the_core(method, case):
    shape, modes, ranks = case
    tensor = draw(*shape)
    result = method(tensor, ranks, modes=modes)
    energy = max(0.0, 1 - float(result.core.norm() ** 2 / tensor.norm() ** 2))
    assert result.relative_error == pytest.approx(energy**0.5, abs=1e-7)
    assert result.relative_error == pytest.approx(measure_error(tensor, result), abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
@given(truncations())
@settings(max_examples=40)
def test_shapes_order_and_orthonormal_columns(method, case):
    shape, modes, ranks = case
    tensor = draw(*shape)
    result = method(tensor, ranks, modes=modes)
    assert result.modes == tuple(modes)
    core = tensor
    for mode, rank, factor in zip(modes, ranks, result.factors, strict=True):
        assert factor.shape == (shape[mode], rank)
        assert_orthonormal(factor)
        core = mode_product(core, factor.mT, mode)
    torch.testing.assert_close(result.core, core)


@given(truncations())
@settings(max_examples=40)
def test_errors_lie_between_their_bounds(case):
    shape, modes, ranks = case
    tensor = draw(*shape)
    tails = [discarded_energy(tensor, mode, rank) for mode, rank in zip(modes, ranks, strict=True)]
    started = st_hosvd(tensor, ranks, modes=modes).relative_error
    result = hooi(tensor, ranks, modes=modes).relative_error
    assert max(tails) - 1e-7 <= result <= started + 1e-12
    assert started <= sum(tail**2 for tail in tails) ** 0.5 + 1e-7


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("shape", "modes"), [((8, 7, 6), (0, 1, 2)), ((12, 9, 3, 3), (0, 1)), ((7, 4, 9), (2, 0))]
)
def test_the_error_never_grows_with_any_rank(method, shape, modes):
    tensor = make_tensor(*shape)
    full = [shape[mode] for mode in modes]
    for i in range(len(modes)):
        errors = []
        for rank in range(1, full[i] + 1):
            ranks = [rank if j == i else (n + 1) // 2 for j, n in enumerate(full)]
            errors.append(method(tensor, ranks, modes=modes).relative_error)
        assert errors == sorted(errors, reverse=True)


def test_the_error_never_grows_with_sweeps():
    tensor = draw(9, 8, 7)
    result = [hooi(tensor, (3, 3, 3), max_iter=n, tol=0) for n in range(8)]
    assert [one.iterations for one in result] == list(range(8))
    assert not any(one.converged for one in result)
    assert all(b.relative_error < a.relative_error for a, b in pairwise(result))
    assert result[0].relative_error == st_hosvd(tensor, (3, 3, 3)).relative_error


@pytest.mark.parametrize(("tol", "excess"), [(5e-4, 2e-3), (1e-6, 1e-4)])
def test_iterations_stop_near_convergence(tol, excess):
    for seed in range(5):
        tensor = make_tensor(16, 12, 3, 3, seed=seed)
        result = hooi(tensor, (8, 6), modes=(0, 1), tol=tol)
        limit = hooi(tensor, (8, 6), modes=(0, 1), max_iter=500, tol=1e-9)
        assert result.converged
        assert result.iterations < limit.iterations
        assert result.relative_error <= limit.relative_error * (1 + excess)


def test_one_truncated_mode_needs_no_sweep():
    tensor = draw(9, 8, 7)
    result = hooi(tensor, (9, 3, 7))
    assert (result.iterations, result.converged) == (0, True)
    assert result.relative_error == pytest.approx(discarded_energy(tensor, 1, 3), rel=1e-9)


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ((10, 9, 8), (4, 3, 3)),
        ((6, 5, 5, 4), (3, 2, 2, 2)),
        ((20, 12), (5, 5)),
        ((30, 4, 3), (4, 2, 2)),
    ],
)
@pytest.mark.parametrize("power", [0.7, 2.0])
def test_no_worse_than_tensorly(shape, ranks, power):
    tensor = make_tensor(*shape, power=power)
    reference = tucker(tensor.numpy(), ranks, n_iter_max=500, tol=1e-12)
    error = tl.norm(tensor.numpy() - tl.tucker_to_tensor(reference)) / tl.norm(tensor.numpy())
    assert hooi(tensor, ranks, max_iter=500, tol=1e-8).relative_error <= error * (1 + 1e-4)


def test_noise_is_fitted_as_well_as_by_tensorly():
    # Which of many optima is reached is chance, so only the mean is compared.
    tensors = [draw(8, 9, 10, seed=seed) for seed in range(12)]
    ours = sum(hooi(tensor, (4, 4, 4)).relative_error for tensor in tensors)
    reference = 0.0
    for tensor in tensors:
        rebuilt = tl.tucker_to_tensor(tucker(tensor.numpy(), (4, 4, 4), n_iter_max=200, tol=1e-6))
        reference += tl.norm(tensor.numpy() - rebuilt) / tl.norm(tensor.numpy())
    assert ours <= reference * (1 + 2e-3)


@pytest.mark.parametrize("modes", [(0, 1), (1, 3), (2,), (0, 2, 3)])
def test_some_modes_are_fitted_as_well_as_by_tensorly(modes):
    tensor = make_tensor(14, 12, 5, 4)
    ranks = [tensor.shape[mode] // 2 for mode in modes]
    (core, factors), _ = partial_tucker(tensor.numpy(), ranks, list(modes), n_iter_max=100)
    rebuilt = tl.tenalg.multi_mode_dot(core, factors, list(modes))
    error = tl.norm(tensor.numpy() - rebuilt) / tl.norm(tensor.numpy())
    assert hooi(tensor, ranks, modes=modes).relative_error <= error * (1 + 2e-3)
    assert hooi(tensor, ranks, modes=modes, tol=1e-6).relative_error <= error * (1 + 1e-4)


@pytest.mark.parametrize("name", ["layer1.8.conv2", "layer2.8.conv2"])
def test_trained_kernels_are_fitted_as_well_as_by_tensorly(name, data_root):
    kernel = load_file(data_root / "cifar10_resnet" / "resnet56.safetensors")[f"{name}.weight"]
    ranks = [n // 2 for n in kernel.shape[:2]]
    (core, factors), _ = partial_tucker(kernel.double().numpy(), ranks, [0, 1], n_iter_max=100)
    rebuilt = tl.tenalg.multi_mode_dot(core, factors, [0, 1])
    error = tl.norm(kernel.double().numpy() - rebuilt) / tl.norm(kernel.double().numpy())
    assert hooi(kernel, ranks, modes=(0, 1)).relative_error <= error * (1 + 2e-3)
    assert hooi(kernel, ranks, modes=(0, 1), tol=1e-6).relative_error <= error * (1 + 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_is_truncated_as_by_its_svd(method):
    matrix = draw(9, 6)
    result = method(matrix, (3, 3))
    assert result.relative_error == pytest.approx(discarded_energy(matrix, 0, 3), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(12, 11, 10), (40, 3, 4), (7, 6, 5, 4)])
def test_exactly_low_rank_tensors_are_recovered(method, shape):
    ranks = [min(2, n) for n in shape]
    tensor = tucker_to_tensor(draw(*ranks), [draw(n, k) for n, k in zip(shape, ranks, strict=True)])
    result = method(tensor, ranks)
    assert measure_error(tensor, result) < 1e-9
    assert result.converged


@pytest.mark.parametrize("method", METHODS)
def test_a_mode_larger_than_the_product_of_the_others(method):
    tensor = draw(30, 2, 3)
    result = method(tensor, (20, 2, 3))
    assert measure_error(tensor, result) < 1e-9
    assert_orthonormal(result.factors[0])


@given(truncations(), st.integers(1, 4))
@settings(max_examples=40)
def test_a_stack_is_decomposed_as_its_tensors(case, count):
    shape, modes, ranks = case
    stack = draw(count, *shape) * 10.0 ** torch.arange(count)[(...,) + (None,) * len(shape)]
    # As many sweeps for all: a stack stops as one.
    result = hooi(stack, ranks, modes=modes, stacked=True, max_iter=2, tol=0)
    alone = [hooi(tensor, ranks, modes=modes, max_iter=2, tol=0) for tensor in stack]
    torch.testing.assert_close(
        result.to_tensor(), torch.stack([one.to_tensor() for one in alone]), rtol=1e-5, atol=1e-5
    )
    assert result.relative_error == pytest.approx(measure_error(stack, result), abs=1e-9)
    assert result.num_params == sum(one.num_params for one in alone)
    for factor, mode, rank in zip(result.factors, modes, ranks, strict=True):
        assert factor.shape == (count, shape[mode], rank)
        assert_orthonormal(factor)


def test_a_stack_is_truncated_in_turn_as_its_tensors():
    stack = draw(3, 8, 7, 6)
    result = st_hosvd(stack, (4, 3), modes=(0, 2), stacked=True)
    alone = [st_hosvd(tensor, (4, 3), modes=(0, 2)).to_tensor() for tensor in stack]
    torch.testing.assert_close(result.to_tensor(), torch.stack(alone))


@pytest.mark.parametrize(
    ("shape", "modes", "ranks"),
    [
        ((12, 9, 3, 3), (0, 1), (6, 4)),
        ((9, 8, 7), (2, 0, 1), (3, 4, 4)),
        ((30, 2, 3), (0, 2), (4, 2)),
    ],
)
def test_known_spectra_give_the_same_result(shape, modes, ranks):
    tensor = make_tensor(*shape)
    start = [spectrum(unfold(tensor, mode)) for mode in modes]
    result = hooi(tensor, ranks, modes=modes, start=start, tol=1e-5)
    expected = hooi(tensor, ranks, modes=modes, tol=1e-5).relative_error
    assert result.relative_error == pytest.approx(expected, rel=1e-3)
    assert result.relative_error == pytest.approx(measure_error(tensor, result), rel=1e-9)
    assert result.converged


def test_known_spectra_of_a_stack():
    stack = torch.stack([make_tensor(8, 7, 6, seed=seed) for seed in range(3)])
    start = [spectrum(stack.movedim(mode + 1, 1).flatten(2)) for mode in (0, 2)]
    result = hooi(stack, (4, 3), modes=(0, 2), stacked=True, start=start)
    expected = hooi(stack, (4, 3), modes=(0, 2), stacked=True)
    assert result.relative_error == pytest.approx(expected.relative_error, rel=1e-3)


def test_spectra_of_another_tensor_are_refused():
    tensor = draw(6, 5, 4)
    start = [spectrum(unfold(tensor, mode)) for mode in range(3)]
    with pytest.raises(InvalidArgumentError, match="one spectrum each to start from, got 3"):
        hooi(tensor, (2, 2), modes=(0, 1), start=start)
    with pytest.raises(InvalidArgumentError, match=r"shape \(5, 24\)"):
        hooi(tensor, (2, 2), modes=(0, 1), start=start[::2])


class LargeAllocations(TorchDispatchMode):
    """Counts the results that need at least so many bytes of their own."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        storages = [
            {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()}
            for leaf in tree_leaves(results)
            if isinstance(leaf, torch.Tensor)
        ]
        inputs = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        for storage in storages:
            self.count += sum(n >= self.size for p, n in storage.items() if p not in inputs)
        return results


@pytest.mark.parametrize("modes", [(0, 1), (1, 2), (0, 1, 2, 3)])
def test_no_second_copy_of_the_tensor(modes):
    tensor = make_tensor(32, 24, 3, 3)
    ranks = [(tensor.shape[mode] + 1) // 2 for mode in modes]
    with LargeAllocations(tensor.nbytes) as allocations:
        hooi(tensor, ranks, modes=modes)
    assert allocations.count <= 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_come_back_in_their_own(dtype, method, device):
    tensor = make_tensor(6, 5, 4).to(device, dtype)
    result = method(tensor, (6, 5, 4))
    assert {result.core.dtype, *(f.dtype for f in result.factors)} == {dtype}
    assert result.core.device == tensor.device
    assert measure_error(tensor, result) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("power", [0.2, 1.5, 3.0])
def test_the_search_in_single_precision_loses_little(power):
    # Errors from 60 % down to 1e-4, across the one below which the search is in float64.
    tensor = 1e20 * make_tensor(20, 16, 3, 3, power=power)
    single = hooi(tensor, (8, 6), modes=(0, 1), tol=1e-5)
    double = hooi(tensor, (8, 6), modes=(0, 1), tol=0.99e-5)
    assert single.relative_error <= double.relative_error * (1 + 1e-2)
    assert single.relative_error == pytest.approx(measure_error(tensor, single), rel=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_tensor_has_no_error(method):
    result = method(torch.zeros(4, 3, 2), (2, 2, 1))
    assert result.relative_error == 0
    assert result.converged
    assert float(result.to_tensor().abs().max()) == 0


def test_a_constant_tensor_has_rank_one():
    assert hooi(torch.full((4, 3, 2), 7.0), (1, 1, 1)).relative_error < 1e-9


def test_gradients_do_not_flow_into_a_decomposition():
    assert not hooi(draw(4, 3).requires_grad_(), (2, 2)).core.requires_grad


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ranks", [(2,), (0, 2), (2, -1), (5, 2), (2, 2, 2), ()])
def test_ranks_out_of_range_are_refused(ranks, method):
    with pytest.raises(
        InvalidArgumentError, match=r"tensor of shape \(4, 3\): modes \(0, 1\) need"
    ):
        method(draw(4, 3), ranks)
    with pytest.raises(
        InvalidArgumentError, match=r"tensor of shape \(4, 3\): modes \(0, 1\) need"
    ):
        method(draw(9, 4, 3), ranks, stacked=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("modes", [(0, 0), (0, 2), (-1, 0), ()])
def test_modes_out_of_range_are_refused(modes, method):
    with pytest.raises(InvalidArgumentError, match="distinct modes from 0 to 1"):
        method(draw(4, 3), (2, 2), modes=modes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad, method):
    tensor = draw(4, 3)
    tensor[1, 2] = bad
    with pytest.raises(InvalidArgumentError, match="NaN or infinite"):
        method(tensor, (2, 2))


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4))
@settings(max_examples=30)
def test_parameters_are_counted_as_stored(sizes):
    shape = [max(pair) for pair in sizes]
    ranks = [min(pair) for pair in sizes]
    result = hooi(draw(*shape), ranks)
    stored = prod(result.core.shape) + sum(f.numel() for f in result.factors)
    assert result.num_params == tucker_params(shape, ranks) == stored
