import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensorpress.codec.bit_io import BitReader
from tensorpress.codec.raw_values import RawStorage, exact_storage, from_bytes, to_bytes
from tensorpress.errors import CorruptFileError, InvalidArgumentError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def round_trip(tensor: torch.Tensor, storage: RawStorage) -> torch.Tensor:
    reader = BitReader(to_bytes(tensor, storage))
    result = from_bytes(reader, storage, tuple(tensor.shape), tensor.dtype)
    reader.finish()
    assert result.shape == tensor.shape
    assert result.dtype == tensor.dtype
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (5,), (3, 1, 7)], ids=str)
def test_every_type_round_trips_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    octets = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    if dtype == torch.bool:
        octets %= 2
    tensor = octets.flatten().view(dtype).reshape(shape)
    result = round_trip(tensor, "raw")
    if dtype == torch.bool:
        assert torch.equal(result, tensor)
        assert len(to_bytes(tensor, "raw")) == -(-tensor.numel() // 8)
    else:
        assert torch.equal(result.flatten().view(torch.uint8), octets.flatten())


def test_views_and_parameters_are_stored_in_row_major_order() -> None:
    tensor = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    assert torch.equal(round_trip(tensor.T, "raw"), tensor.T)
    assert torch.equal(round_trip(tensor[:, ::2], "half"), tensor[:, ::2])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integers_up_to_the_limits_of_their_type_round_trip(dtype: torch.dtype) -> None:
    limits = torch.iinfo(dtype)
    tensor = torch.tensor([limits.min, 0, 1, limits.max], dtype=dtype)
    assert torch.equal(round_trip(tensor, "integers"), tensor)


def test_exact_storage_is_the_shorter_one() -> None:
    assert exact_storage(torch.tensor(63)) == "integers"
    assert len(to_bytes(torch.tensor(63), "integers")) == 1
    assert exact_storage(torch.tensor(2**62)) == "raw"
    assert exact_storage(torch.tensor(200, dtype=torch.uint8)) == "raw"
    assert exact_storage(torch.zeros(1000, dtype=torch.int64)) == "raw"
    assert exact_storage(torch.tensor(True)) == "raw"
    assert exact_storage(torch.tensor([], dtype=torch.int64)) == "raw"


@given(st.lists(st.floats(-60000, 60000)))
def test_half_is_the_cast_to_float16(values: list[float]) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        tensor = torch.tensor(values, dtype=dtype)
        assert torch.equal(round_trip(tensor, "half"), tensor.half().to(dtype))


@pytest.mark.parametrize("bad", [70000.0, float("inf"), float("nan")])
def test_half_refuses_what_float16_cannot_hold(bad: float) -> None:
    with pytest.raises(InvalidArgumentError, match="not finite in float16"):
        to_bytes(torch.tensor([bad]), "half")
    with pytest.raises(InvalidArgumentError, match=r"torch\.int64"):
        to_bytes(torch.tensor([1]), "half")


@pytest.mark.parametrize(
    ("data", "storage", "shape", "dtype", "reason"),
    [
        (b"abc", "raw", (1,), torch.float32, "end early"),
        (b"abc", "raw", (10**15,), torch.float32, "end early"),
        (b"abc", "raw", (10**15,), torch.bool, "end early"),
        (b"abc", "half", (2,), torch.float32, "end early"),
        (b"abcd", "half", (2,), torch.int64, "float16"),
        (b"\x01", "integers", (2,), torch.int64, "end early"),
        (b"\x01", "integers", (), torch.float32, "stored as integers"),
        (b"\x01", "integers", (10**15,), torch.int64, "stored as integers"),
        (b"\x01", "integers", (), torch.uint8, "exceeds torch.uint8"),
        (b"\x80\x02", "integers", (), torch.int8, "exceeds torch.int8"),
    ],
)
def test_bytes_that_do_not_fit_are_refused(
    data: bytes, storage: RawStorage, shape: tuple[int, ...], dtype: torch.dtype, reason: str
) -> None:
    with pytest.raises(CorruptFileError, match=reason):
        from_bytes(BitReader(data), storage, shape, dtype)
