import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tensorpress.decompose import hooi, precision, st_hosvd, truncated_svd
from tensorpress.decompose.precision import projection_error, to_working_precision
from tensorpress.errors import InvalidArgumentError

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_values_are_converted_to_float64(dtype, device):
    values = torch.tensor([[1.5, -2.0], [0.0, 0.25]], dtype=dtype, device=device)
    result = to_working_precision(values)
    assert result.dtype == torch.float64
    assert result.device == values.device
    assert result.tolist() == values.tolist()


def test_float64_is_not_copied():
    values = torch.ones(3, 2, dtype=torch.float64)
    assert to_working_precision(values).data_ptr() == values.data_ptr()


def test_gradients_are_cut_off():
    assert not to_working_precision(torch.ones(2, requires_grad=True)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad, dtype):
    values = torch.ones(3, 2, dtype=dtype)
    values[2, 0] = bad
    with pytest.raises(InvalidArgumentError, match=r"shape \(3, 2\) with NaN or infinite"):
        to_working_precision(values)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_other_numbers_are_refused(dtype):
    with pytest.raises(InvalidArgumentError, match=str(dtype)):
        to_working_precision(torch.ones(2, 2, dtype=dtype))


def test_a_tensor_without_entries_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"shape \(0, 3\): it has no entries"):
        to_working_precision(torch.ones(0, 3))


@pytest.mark.parametrize("scale", [1e100, 1e-100])
def test_values_whose_energies_overflow_or_vanish_are_refused(scale):
    with pytest.raises(InvalidArgumentError, match="scale it first"):
        to_working_precision(torch.full((2, 2), scale, dtype=torch.float64))


@pytest.mark.parametrize("value", [torch.finfo(torch.float32).max, 1e-45, 0.0])
def test_every_float32_is_accepted(value):
    assert float(to_working_precision(torch.full((2,), value)).max()) == float(torch.tensor(value))


def make_projection(angle):
    """A unit vector in the plane, and its projection on the first axis."""
    vector = torch.tensor([angle, 0.0], dtype=torch.float64).cos()
    vector[1] = torch.tensor(angle, dtype=torch.float64).sin()
    return vector, vector * torch.tensor([1.0, 0.0])


@pytest.mark.parametrize("angle", [1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-9])
def test_errors_of_projections_are_exact_however_small(angle):
    vector, inside = make_projection(angle)
    energy = float(inside.square().sum())
    expected = float(torch.tensor(angle, dtype=torch.float64).sin())
    assert projection_error(vector, energy, lambda: inside) == pytest.approx(expected, rel=1e-9)


def test_a_zero_tensor_has_no_error():
    assert projection_error(torch.zeros(3), 0.0, lambda: torch.zeros(3)) == 0


def test_large_errors_are_computed_without_rebuilding():
    def rebuild():
        raise AssertionError

    assert projection_error(torch.tensor([3.0, 4.0]), 16.0, rebuild) == pytest.approx(0.6)


class NoDoubles(TorchDispatchMode):
    """A device without float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert all(
            leaf.dtype != torch.float64 for leaf in tree_leaves(result) if torch.is_tensor(leaf)
        )
        return result


@pytest.mark.parametrize(
    "decompose",
    [
        lambda x: hooi(x, (3, 3), modes=(0, 1)),
        lambda x: hooi(x, (3, 3), modes=(0, 1), tol=1e-6),
        lambda x: st_hosvd(x, (3, 3), modes=(0, 1)),
        lambda x: truncated_svd(x.flatten(1), 3, method="randomized"),
    ],
)
def test_devices_without_float64_compute_in_float32(decompose, monkeypatch):
    monkeypatch.setattr(precision, "DEVICES_WITHOUT_FLOAT64", {"cpu"})
    x = torch.randn(8, 7, 3, 3, generator=torch.Generator().manual_seed(0))
    with NoDoubles():
        result = decompose(x)
    error = float((x.flatten() - result.to_tensor().flatten()).norm() / x.norm())
    assert result.relative_error == pytest.approx(error, rel=1e-4)
