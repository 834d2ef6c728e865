from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tensorpress.codec.quantize import UniformQuantizer
from tensorpress.codec.specs import read_specs
from tensorpress.codec.tensors import Coder, decode_tensors, encode_tensors, entropy_bits
from tensorpress.errors import CorruptFileError, InvalidArgumentError

CODERS: tuple[Coder, ...] = ("range", "huffman")
LENET5 = [36, 150, 120, 20, 125, 250, 125, 100, 50, 625]
LENET5 += [200, 125, 100, 100, 500, 125, 125, 100, 50, 10]

Quantizers = list[UniformQuantizer | str | None]


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
    ]
    return tensors, [fine, coarse, "half", None, None, coarse, fine, None, fine]


def expected(tensor: torch.Tensor, quantizer: UniformQuantizer | str | None) -> torch.Tensor:
    if isinstance(quantizer, UniformQuantizer):
        return quantizer.values(quantizer.indices(tensor), tensor.dtype)
    return tensor.half().to(tensor.dtype) if quantizer == "half" else tensor


def meta(tensors: list[torch.Tensor]) -> tuple[list[tuple[int, ...]], list[torch.dtype]]:
    return [tuple(t.shape) for t in tensors], [t.dtype for t in tensors]


@pytest.mark.parametrize("coder", CODERS)
def test_decoded_tensors_are_the_quantized_ones(coder: Coder) -> None:
    tensors, quantizers = example()
    encoded = encode_tensors(tensors, quantizers, coder)
    decoded = decode_tensors(encoded.spec, encoded.payload, *meta(tensors))
    for tensor, quantizer, again in zip(tensors, quantizers, decoded, strict=True):
        assert again.dtype == tensor.dtype
        assert torch.equal(again, expected(tensor, quantizer))
    bits = 8 * (len(encoded.spec) + len(encoded.payload))
    assert len(encoded.bits) == len(tensors)
    assert 0 < bits - sum(encoded.bits) < 8 * 30


@pytest.mark.parametrize("coder", CODERS)
def test_nothing_takes_almost_nothing(coder: Coder) -> None:
    encoded = encode_tensors([], [], coder)
    assert len(encoded.spec) == 2
    assert decode_tensors(encoded.spec, encoded.payload, [], []) == []
    empty = encode_tensors([torch.empty(0, 3)], [UniformQuantizer(2, 1.0)], coder)
    (tensor,) = decode_tensors(empty.spec, empty.payload, [(0, 3)], [torch.float32])
    assert tensor.shape == (0, 3)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-4, 4, width=32), max_size=30),
            st.sampled_from([None, "half", UniformQuantizer(64, 3.0), UniformQuantizer(2, 0.1)]),
        ),
        max_size=12,
    ),
    st.sampled_from(CODERS),
)
def test_any_tensors_come_back(
    cases: list[tuple[list[float], UniformQuantizer | str | None]], coder: Coder
) -> None:
    tensors = [torch.tensor(values) for values, _ in cases]
    quantizers = [quantizer for _, quantizer in cases]
    encoded = encode_tensors(tensors, quantizers, coder)
    decoded = decode_tensors(encoded.spec, encoded.payload, *meta(tensors))
    for tensor, quantizer, again in zip(tensors, quantizers, decoded, strict=True):
        assert torch.equal(again, expected(tensor, quantizer))


@pytest.mark.parametrize("levels", [64, 128, 256, 512])
def test_a_pressed_lenet5_takes_its_entropy_and_a_byte_a_tensor(levels: int) -> None:
    quantizer = UniformQuantizer(levels, 3.0)
    generator = torch.manual_seed(levels)
    tensors, ideal = [], 0.0
    for size in LENET5:
        scale = torch.empty(()).uniform_(0.1, 0.8, generator=generator)
        uniform = torch.rand(size, generator=generator) - 0.5
        tensors.append(-scale * uniform.sign() * (1 - 2 * uniform.abs()).log())
        # The information under the distribution that the tensor was drawn from.
        centers = quantizer.values(quantizer.indices(tensors[-1]))
        density = (-(centers / scale).abs()).exp() / (2 * scale) * quantizer.step
        ideal -= float(density.log2().sum())
    encoded = encode_tensors(tensors, [quantizer] * len(tensors))
    size = len(encoded.spec) + len(encoded.payload)
    assert len(encoded.spec) <= 7 + len(tensors) + 8
    assert size <= 1.01 * ideal / 8 + 35
    huffman = encode_tensors(tensors, [quantizer] * len(tensors), "huffman")
    assert size < len(huffman.spec) + len(huffman.payload)


@pytest.mark.parametrize("coder", CODERS)
def test_trained_resnet20_takes_its_entropy(data_root: Path, coder: Coder) -> None:
    weights = load_file(data_root / "cifar10_resnet" / "resnet20.safetensors")
    tensors = list(weights.values())
    quantizers: Quantizers = [
        UniformQuantizer(128, float(t.abs().max())) if t.dim() > 1 else None for t in tensors
    ]
    encoded = encode_tensors(tensors, quantizers, coder)
    decoded = decode_tensors(encoded.spec, encoded.payload, *meta(tensors))
    entropy = 0.0
    for tensor, quantizer, again in zip(tensors, quantizers, decoded, strict=True):
        assert torch.equal(again, expected(tensor, quantizer))
        if isinstance(quantizer, UniformQuantizer):
            entropy += tensor.numel() * entropy_bits(quantizer.indices(tensor))
    coded = sum(bits for bits, quantizer in zip(encoded.bits, quantizers, strict=True) if quantizer)
    assert entropy < coded <= (1.01 if coder == "range" else 1.03) * entropy


def test_quantizers_are_stored_once() -> None:
    tensors = [torch.zeros(5) for _ in range(64)]
    quantizers = [UniformQuantizer(256, 0.1 * (1 + i % 2)) for i in range(64)]
    rounding = [UniformQuantizer(q.levels, q.bound, "floor") for q in quantizers]
    encoded = encode_tensors(tensors, [*quantizers[:32], *rounding[32:]], "huffman")
    assert len(encoded.spec) <= 2 + 2 * 6 + 64 // 8 + 2 * 2 + 1


def test_specs_say_how_tensors_are_stored() -> None:
    tensors, quantizers = example()
    for coder in CODERS:
        specs = read_specs(encode_tensors(tensors, quantizers, coder).spec, *meta(tensors))
        fine, coarse = UniformQuantizer(128, 3.0), UniformQuantizer(8, 0.5)
        storages = [fine, coarse, "half", "integers", "raw", coarse, fine, "raw", fine]
        assert [spec.storage for spec in specs] == storages
        models = [spec.model is not None for spec in specs]
        assert models == [True, True, False, False, False, True, False, False, True]


@pytest.mark.parametrize("coder", CODERS)
@settings(max_examples=200)
@given(data=st.data())
def test_damage_is_refused_or_leaves_tensors_of_the_same_form(
    coder: Coder, data: st.DataObject
) -> None:
    tensors, quantizers = example()
    encoded = encode_tensors(tensors, quantizers, coder)
    parts = [bytearray(encoded.spec), bytearray(encoded.payload)]
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
        decoded = decode_tensors(bytes(parts[0]), bytes(parts[1]), *meta(tensors))
    except CorruptFileError:
        return
    assert meta(decoded) == meta(tensors)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_are_refused_or_give_tensors_of_the_form(spec: bytes, payload: bytes) -> None:
    shapes, dtypes = [(3, 4), (), (7,)], [torch.float32, torch.int64, torch.float16]
    try:
        decoded = decode_tensors(spec, payload, shapes, dtypes)
    except CorruptFileError:
        return
    assert meta(decoded) == (shapes, dtypes)


@pytest.mark.parametrize("coder", CODERS)
def test_data_after_the_end_are_refused(coder: Coder) -> None:
    tensors, quantizers = example()
    encoded = encode_tensors(tensors, quantizers, coder)
    with pytest.raises(CorruptFileError, match="after the end"):
        decode_tensors(encoded.spec + b"\0", encoded.payload, *meta(tensors))
    with pytest.raises(CorruptFileError, match="after the coded values"):
        decode_tensors(encoded.spec, encoded.payload + bytes(9999), *meta(tensors))


def test_forms_that_do_not_fit_are_refused() -> None:
    encoded = encode_tensors([torch.zeros(4)], [UniformQuantizer(4, 1.0)])
    with pytest.raises(CorruptFileError, match=r"torch\.int64 cannot have been quantized"):
        decode_tensors(encoded.spec, encoded.payload, [(4,)], [torch.int64])
    with pytest.raises(CorruptFileError, match="0 tensors"):
        decode_tensors(encoded.spec, encoded.payload, [], [])


def test_tensors_that_cannot_be_stored_are_named() -> None:
    good, quantizer = torch.zeros(2), UniformQuantizer(4, 1.0)
    with pytest.raises(InvalidArgumentError, match=r"tensor 1: .* NaN"):
        encode_tensors([good, good / 0], [quantizer, quantizer])
    with pytest.raises(InvalidArgumentError, match=r"tensor 0: .* not torch\.int64"):
        encode_tensors([torch.tensor(1)], [quantizer])
    with pytest.raises(InvalidArgumentError, match=r"tensor 1: .* float16"):
        encode_tensors([good, good + 1e6], ["half", "half"])
    with pytest.raises(InvalidArgumentError, match="1 tensors but 2 quantizers"):
        encode_tensors([good], [None, None])
    with pytest.raises(InvalidArgumentError, match="'zip'"):
        encode_tensors([good], [None], "zip")  # type: ignore[arg-type]


def test_entropy() -> None:
    assert entropy_bits(torch.empty(0, dtype=torch.int32)) == 0
    assert entropy_bits(torch.full((3, 3), 7)) == 0
    assert entropy_bits(torch.arange(256).reshape(16, 16)) == 8
