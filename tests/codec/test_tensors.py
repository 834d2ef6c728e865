from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.decode_tensors import DecodedTensor, decode_tensors
from tensorpress.codec.encode_tensors import encode_tensors
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.static_tables import entropy_bits
from tensorpress.codec.storage import Coder, Constant
from tensorpress.errors import CorruptFileError, InvalidArgumentError

CODERS: tuple[Coder, ...] = ("range", "huffman")
LENET5 = [36, 150, 120, 20, 125, 250, 125, 100, 50, 625]
LENET5 += [200, 125, 100, 100, 500, 125, 125, 100, 50, 10]

STEPS = [StepQuantizer(-30), StepQuantizer(4)]

Quantizers = list[UniformQuantizer | StepQuantizer | Literal["half"] | None]


def example() -> tuple[list[torch.Tensor], Quantizers]:
    """Return a few tensors of all kinds."""
    generator = torch.manual_seed(0)
    fine, coarse = UniformQuantizer(128, 3.0), UniformQuantizer(8, 0.5, "floor")
    tensors = [
        torch.randn(6, 5, 2, generator=generator),
        torch.randn(40, generator=generator).bfloat16(),
        torch.randn(4, generator=generator),
        torch.tensor(12345),
        torch.randn(3, 3, generator=generator),
        torch.zeros(30),
        torch.randn(0, 7),
        torch.tensor([True, False, True]),
        torch.randn(50, generator=generator).double(),
        torch.randn(4, 3, 3, 3, generator=generator),
        torch.full((3, 3), 0.1),
        torch.ones(5, dtype=torch.bfloat16),
    ]
    steps = StepQuantizer(-20)
    return tensors, [
        *(fine, coarse, "half", None, None, coarse, fine, None, fine, steps, fine, steps),
    ]


def expected(tensor: torch.Tensor, quantizer: object) -> torch.Tensor:
    if tensor.numel() > 2 and tensor.is_floating_point() and tensor.min() == tensor.max():
        return tensor
    if isinstance(quantizer, (UniformQuantizer, StepQuantizer)):
        return quantizer(tensor)
    return tensor.half().to(tensor.dtype) if quantizer == "half" else tensor


def meta(tensors: list[torch.Tensor]) -> tuple[list[tuple[int, ...]], list[torch.dtype]]:
    return [tuple(t.shape) for t in tensors], [t.dtype for t in tensors]


def encode(
    tensors: list[torch.Tensor], quantizers: Quantizers, coder: Coder = "range"
) -> tuple[bytes, bytes]:
    stream = Stream()
    payload = encode_tensors(stream, tensors, quantizers, coder)
    return stream.finish(), payload


def round_trip(
    tensors: list[torch.Tensor], quantizers: Quantizers, coder: Coder = "range"
) -> list[DecodedTensor]:
    stream, payload = encode(tensors, quantizers, coder)
    return decode_tensors(Stream(stream), payload, *meta(tensors), coder)


@pytest.mark.parametrize("coder", CODERS)
def test_decoded_tensors_are_the_quantized_ones(coder: Coder) -> None:
    tensors, quantizers = example()
    stream, payload = encode(tensors, quantizers, coder)
    decoded = decode_tensors(Stream(stream), payload, *meta(tensors), coder)
    for tensor, quantizer, result in zip(tensors, quantizers, decoded, strict=True):
        assert result.values.dtype == tensor.dtype
        assert torch.equal(result.values, expected(tensor, quantizer))
    bits = 8 * (len(stream) + len(payload))
    assert -8 < bits - sum(t.table_bits + t.value_bits for t in decoded) < 8 * 12


@pytest.mark.parametrize("coder", CODERS)
def test_no_tensors_take_no_bytes(coder: Coder) -> None:
    assert encode([], [], coder) == (b"", b"")
    (empty,) = round_trip([torch.empty(0, 3)], [StepQuantizer(3)], coder)
    assert empty.values.shape == (0, 3)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-4, 4, width=32), max_size=30),
            st.sampled_from(
                [None, "half", UniformQuantizer(64, 3.0), UniformQuantizer(2, 0.1), *STEPS]
            ),
        ),
        max_size=12,
    ),
    st.sampled_from(CODERS),
)
def test_any_tensors_round_trip(cases: list[tuple[list[float], object]], coder: Coder) -> None:
    tensors = [torch.tensor(values) for values, _ in cases]
    quantizers: Quantizers = [quantizer for _, quantizer in cases]  # type: ignore[misc]
    decoded = round_trip(tensors, quantizers, coder)
    for tensor, quantizer, result in zip(tensors, quantizers, decoded, strict=True):
        assert torch.equal(result.values, expected(tensor, quantizer))


@pytest.mark.parametrize("step", [-16, 0])
def test_a_pressed_lenet5_takes_its_information_and_a_byte_a_tensor(step: int) -> None:
    quantizer = StepQuantizer(step)
    generator = torch.manual_seed(step)
    tensors, ideal = [], 0.0
    for size in LENET5:
        scale = torch.empty(()).uniform_(0.5, 4, generator=generator)
        uniform = torch.rand(size, generator=generator) - 0.5
        tensors.append(-scale * uniform.sign() * (1 - 2 * uniform.abs()).log())
        # The information under the distribution that the tensor was drawn from.
        ratio = torch.exp(-torch.tensor(quantizer.step) / scale)
        zero = 1 - ratio.sqrt()
        some = ratio.sqrt() * (1 - ratio) / 2
        magnitudes = quantizer.symbols(tensors[-1]).abs()
        bits = -(some.log2() + (magnitudes - 1) * ratio.log2())
        ideal += float(torch.where(magnitudes == 0, -zero.log2(), bits).sum())
    stream, payload = encode(tensors, [quantizer] * len(tensors))
    assert payload == b""
    assert len(stream) <= 1.02 * ideal / 8 + len(LENET5)
    assert len(stream) < sum(map(len, encode(tensors, [quantizer] * len(tensors), "huffman")))


def test_trained_convolutions_take_less_than_their_entropy(data_root: Path) -> None:
    weights = load_file(data_root / "cifar10_resnet" / "resnet20.safetensors")
    tensors = [t for t in weights.values() if t.dim() > 1][:8]
    quantizers: Quantizers = [StepQuantizer.nearest(float(t.std()) / 2) for t in tensors]
    entropy = coded = 0.0
    decoded = round_trip(tensors, quantizers)
    for tensor, quantizer, result in zip(tensors, quantizers, decoded, strict=True):
        assert torch.equal(result.values, expected(tensor, quantizer))
        entropy += tensor.numel() * entropy_bits(torch.from_numpy(result.symbols))
        coded += result.table_bits + result.value_bits
    assert coded < 0.95 * entropy


def test_symbols_without_structure_are_coded_by_tables() -> None:
    generator = torch.manual_seed(0)
    codes = torch.tensor([-3000.0, -70.0, 5.0, 900.0])
    tensor = codes[torch.randint(4, (60, 100), generator=generator)]
    (stored,) = round_trip([tensor], [StepQuantizer(0)])
    assert torch.equal(stored.values, tensor)
    assert stored.value_bits / tensor.numel() < 2.01
    assert stored.table_bits > 1000


def test_large_tensors_are_coded_by_tables_unless_they_gain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tensorpress.codec.encode_tensors._LARGE", 2000)
    monkeypatch.setattr("tensorpress.codec.encode_tensors._SAMPLE", 1000)
    generator = torch.manual_seed(0)
    alike = torch.randn(60, 60, generator=generator)
    grown = alike * torch.logspace(-2, 2, 60)
    quantizers: Quantizers = [StepQuantizer(0), StepQuantizer(0)]
    stream, payload = encode([alike, grown], quantizers)
    only_first = encode([alike], [StepQuantizer(0)])
    assert len(payload) == len(only_first[1]) > 500
    decoded = decode_tensors(Stream(stream), payload, *meta([alike, grown]))
    assert torch.equal(decoded[0].values, alike.round())
    assert torch.equal(decoded[1].values, grown.round())


def test_quantizers_are_stored_once() -> None:
    generator = torch.manual_seed(0)
    tensors = [torch.randn(5, generator=generator) for _ in range(64)]
    quantizers: Quantizers = [UniformQuantizer(256, 2.0 * (1 + i % 2)) for i in range(64)]
    rounding = [UniformQuantizer(q.levels, q.bound, "floor") for q in quantizers]
    decoded = round_trip(tensors, [*quantizers[:32], *rounding[32:]])
    assert sum(t.table_bits for t in decoded) < 64 * 10


def test_decoded_tensors_report_their_storage() -> None:
    tensors, quantizers = example()
    for coder in CODERS:
        storages = [t.storage for t in round_trip(tensors, quantizers, coder)]
        fine, coarse = UniformQuantizer(128, 3.0), UniformQuantizer(8, 0.5)
        assert storages[:5] == [fine, coarse, "half", "integers", "raw"]
        assert storages[5:10] == [Constant(0.0), fine, "raw", fine, StepQuantizer(-20)]
        assert storages[10:] == [Constant(0.10000000149011612), Constant(1.0)]


def test_constants_take_next_to_nothing() -> None:
    tensors = [torch.full((1000,), value) for value in (0.0, 1.0, 0.25)] * 20
    tensors += [torch.zeros(1000, dtype=torch.int64), torch.full((9,), 0.01)]
    quantizers: Quantizers = [None, "half", StepQuantizer(0)] * 20 + [None, StepQuantizer(9)]
    decoded = round_trip(tensors, quantizers)
    for tensor, result in zip(tensors, decoded, strict=True):
        assert torch.equal(result.values, tensor)
    assert sum(t.table_bits + t.value_bits for t in decoded) < 8 * (42 + 20 * 5)
    (sign,) = round_trip([torch.tensor([-0.0, -0.0])], [None])
    assert torch.signbit(sign.values).all()


@pytest.mark.parametrize("coder", CODERS)
@settings(max_examples=40)
@given(data=st.data())
def test_damage_is_refused_or_leaves_tensors_of_the_same_form(
    coder: Coder, data: st.DataObject
) -> None:
    tensors, quantizers = example()
    parts = [bytearray(part) for part in encode(tensors, quantizers, coder)]
    for _ in range(data.draw(st.integers(1, 3))):
        part = parts[data.draw(st.integers(0, 1))]
        place = data.draw(st.integers(0, max(len(part) - 1, 0)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "cut":
            del part[place:]
        elif kind == "insert":
            part[place:place] = data.draw(st.binary(min_size=1, max_size=4))
        elif part:
            part[place] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_tensors(Stream(bytes(parts[0])), bytes(parts[1]), *meta(tensors), coder)
    except CorruptFileError:
        return
    assert meta([t.values for t in decoded]) == meta(tensors)


@pytest.mark.parametrize("compiled", [0, 1 << 20])
@settings(max_examples=60)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_are_refused_or_give_tensors_of_the_form(
    compiled: int, stream: bytes, payload: bytes
) -> None:
    shapes, dtypes = [(30, 4), (), (7,)], [torch.float32, torch.int64, torch.float16]
    reader = Stream(stream)
    reader.expect(compiled)
    try:
        decoded = decode_tensors(reader, payload, shapes, dtypes)
    except CorruptFileError:
        return
    assert meta([t.values for t in decoded]) == (shapes, dtypes)


@pytest.mark.parametrize("coder", CODERS)
def test_data_after_the_end_are_refused(coder: Coder) -> None:
    tensors, quantizers = example()
    stream, payload = encode(tensors, quantizers, coder)
    with pytest.raises(CorruptFileError, match="after the coded values"):
        decode_tensors(Stream(stream + bytes(9)), payload, *meta(tensors), coder)
    with pytest.raises(CorruptFileError, match="after the coded values"):
        decode_tensors(Stream(stream), payload + bytes(9999), *meta(tensors), coder)


def test_storages_that_do_not_fit_the_dtype_are_refused() -> None:
    stream, payload = encode([torch.tensor([0.0, 1.0, 4.0])], ["half"])
    with pytest.raises(CorruptFileError):
        decode_tensors(Stream(stream), payload, [(3,)], [torch.int64])


def test_tensors_that_cannot_be_stored_are_named() -> None:
    good, quantizer = torch.tensor([0.5, 0.25]), StepQuantizer(0)
    with pytest.raises(InvalidArgumentError, match=r"tensor 1: .* NaN"):
        encode([good, good / 0], [quantizer, quantizer])
    with pytest.raises(InvalidArgumentError, match=r"tensor 0: .* not torch\.int64"):
        encode([torch.tensor(5)], [quantizer])
    with pytest.raises(InvalidArgumentError, match=r"tensor 1: .* float16"):
        encode([good, good + 1e6], ["half", "half"])
    with pytest.raises(InvalidArgumentError, match="1 tensors but 2 quantizers"):
        encode([good], [None, None])


def test_entropy() -> None:
    assert entropy_bits(torch.empty(0, dtype=torch.int32)) == 0
    assert entropy_bits(torch.full((3, 3), 7)) == 0
    assert entropy_bits(torch.arange(256).reshape(16, 16)) == 8
