import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tensorpress.codec.bit_io import BitReader
from tensorpress.codec.exact_floats import SPLITS, decode_floats, encode_floats
from tensorpress.errors import CorruptFileError

TYPES = list(SPLITS)


def octets(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def size_of(tensor: Tensor) -> int:
    """The bytes of a tensor, which must come back bit for bit."""
    data = encode_floats(tensor)
    reader = BitReader(data)
    decoded = decode_floats(reader, tuple(tensor.shape), tensor.dtype)
    reader.finish()
    assert (decoded.shape, decoded.dtype) == (tensor.shape, tensor.dtype)
    assert octets(decoded) == octets(tensor)
    return len(data)


def trained(dtype: torch.dtype, rows: int = 120, columns: int = 150) -> Tensor:
    """Values whose rows and columns differ in scale."""
    random = torch.Generator().manual_seed(0)
    scales = torch.randn(rows, 1, generator=random).exp()
    scales = scales * torch.randn(columns, generator=random).mul(0.5).exp()
    return (0.02 * scales * torch.randn(rows, columns, generator=random)).to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=15)
@given(data=st.data())
def test_every_bit_comes_back(dtype: torch.dtype, data: st.DataObject) -> None:
    """NaN with any payload, infinities, zeros of both signs and subnormal numbers among them."""
    patterns = data.draw(st.lists(st.binary(min_size=8, max_size=8), max_size=40))
    values = trained(dtype, 64, 65).reshape(-1).contiguous()
    some = np.frombuffer(b"".join(patterns), np.uint8).copy()
    values.view(torch.uint8)[: some.size] = torch.from_numpy(some)
    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), torch.finfo(dtype).tiny / 8]
    values[-6:] = torch.tensor(special, dtype=torch.float64).to(dtype)
    size_of(values.reshape(64, 65))
    size_of(values)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "shape", [(), (0, 5), (3,), (7, 5), (1, 5000), (5000, 1), (5000,), (2,) * 13]
)
def test_all_shapes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    size_of(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))


@pytest.mark.parametrize("value", [0.0, -0.0, float("nan"), float("inf"), 1e-40])
def test_tensors_of_one_value(value: float) -> None:
    assert size_of(torch.full((100, 100), value)) < 60


def test_no_exponent_repeats_among_random_bits() -> None:
    bits = torch.randint(
        -(2**63), 2**63 - 1, (100, 100), generator=torch.Generator().manual_seed(0)
    )
    assert size_of(bits.view(torch.float64)) <= 8 * 100 * 100 + 1


def test_exponents_of_weights_take_a_third_less() -> None:
    assert size_of(trained(torch.bfloat16)) < 0.69 * 2 * 120 * 150
    assert size_of(trained(torch.float32)) < 0.85 * 4 * 120 * 150


def test_scales_of_rows_and_columns_save_bits() -> None:
    weight = trained(torch.bfloat16)
    shuffled = weight.reshape(-1)[torch.randperm(weight.numel())].reshape(weight.shape)
    assert size_of(weight) < 0.97 * size_of(shuffled)


def test_bits_that_are_zero_cost_nothing() -> None:
    """Values of a narrower type in a wider one, all of them or most."""
    half = trained(torch.bfloat16)
    assert size_of(half.float()) < size_of(half) + 30
    few = half.float()
    few[0] += 1e-9
    assert size_of(few) < size_of(half) + 1500


def test_pruned_weights() -> None:
    weight = trained(torch.bfloat16)
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.9] = 0
    assert size_of(weight) < 0.65 * 2 * weight.numel()


def test_damage_is_an_error() -> None:
    weight = trained(torch.bfloat16)
    data = encode_floats(weight)
    for end in (0, 1, 2, 40, len(data) // 2, len(data) - 1):
        with pytest.raises(CorruptFileError):
            decode_floats(BitReader(data[:end]), (120, 150), torch.bfloat16)
    with pytest.raises(CorruptFileError):
        decode_floats(BitReader(bytes([9]) + data[1:]), (120, 150), torch.bfloat16)
    with pytest.raises(CorruptFileError):
        decode_floats(BitReader(data), (120, 150), torch.int16)


@given(st.integers(0, 3000), st.integers(1, 255))
def test_altered_bytes_give_values_or_an_error(place: int, change: int) -> None:
    data = bytearray(encode_floats(trained(torch.bfloat16, 64, 65)))
    data[place % len(data)] ^= change
    try:
        decoded = decode_floats(BitReader(bytes(data)), (64, 65), torch.bfloat16)
    except CorruptFileError:
        return
    assert decoded.shape == (64, 65)
