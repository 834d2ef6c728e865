"""Files written once must give the same values in every later version, and on every machine.

``python tests/codec/test_golden_files.py NAME`` writes a missing file; those that are there stay.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.codec import container
from tensorpress.codec.bit_io import BitReader
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.raw_values import from_bytes, to_bytes
from tensorpress.codec.state_dict import load_tensors, save_tensors
from tensorpress.models.zoo import build

FOLDER = Path(__file__).parent / "golden"
HASHES = FOLDER / "hashes.json"


def waves(*shape: int) -> Tensor:
    """Smooth values whose size changes by row, computed in integers alone."""
    count = torch.tensor(shape).prod()
    steps = torch.arange(int(count))
    values = (steps * 37 + steps // 11 * 101) % 257 - 128
    return (values * (1 + steps % 7)).reshape(shape).float() / 1024


def named_tensors() -> tuple[dict[str, Tensor], dict[str, StepQuantizer]]:
    """Tensors of every type, and of every way to be stored."""
    types = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.float64, torch.bfloat16)
    tensors = {f"raw {dtype}": torch.arange(-60, 90).to(dtype) for dtype in types}
    tensors |= {
        "bool": waves(70) > 0,
        "complex": torch.complex(waves(9), waves(9) + 1),
        "integers": torch.tensor([3, -70, 9000]),
        "zeros": torch.zeros(40, 3),
        "ones": torch.ones(5, dtype=torch.float64),
        "constant": torch.full((3, 3, 3), 0.1),
        "half": waves(33),
        "adaptive": waves(12, 5, 3, 3),
        "vector": waves(50),
        "table": torch.tensor([-700.0, 700.0]).repeat(400),
        "empty": torch.empty(0, 4),
    }
    steps = {
        "adaptive": StepQuantizer(-40),
        "vector": StepQuantizer(-30),
        "table": StepQuantizer(0),
    }
    return tensors, steps


def exact_tensors() -> dict[str, Tensor]:
    """Tensors of every type whose bits are coded, and one too small for that."""
    types = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    tensors = {f"coded {dtype}": waves(70, 60).bfloat16().to(dtype) for dtype in types}
    return tensors | {"vector": waves(4200), "small": torch.tensor([torch.inf, -0.0])}


def small_net() -> nn.Module:
    net = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20))
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.copy_(waves(*tensor.shape))
    return net


def write(name: str, path: Path) -> None:
    if name == "tensors":
        tensors, steps = named_tensors()
        save_tensors(tensors, path, steps)
    elif name == "huffman":
        tp.save(small_net(), path, coder="huffman", quantizer=UniformQuantizer(16, 0.5))
    elif name == "lossless":
        save_tensors(exact_tensors(), path, None)
    elif name == "zoo":
        torch.manual_seed(0)
        dense = build("lenet5")
        plan = tp.plan(dense, scheme="scada_tucker", budget="params=900")
        tp.save(tp.press(dense, plan, init="kaiming"), path, network="lenet5")
    else:
        net = small_net()
        tp.save(tp.press(net, tp.plan(net, scheme="channel_svd", ranks=3)), path)


NAMES = ("tensors", "huffman", "zoo", "pressed", "lossless")


def digest(tensors: dict[str, Tensor]) -> str:
    """Return a hash of names, types and exact values that no byte order changes."""
    content = [[name, str(t.dtype), str(t.tolist())] for name, t in tensors.items()]
    return sha256(json.dumps(content).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", NAMES)
def test_golden_files_give_their_values(name: str) -> None:
    path = FOLDER / f"v{container.VERSION}-{name}.tpz"
    assert digest(load_tensors(path)) == json.loads(HASHES.read_text())[path.name]


def test_every_golden_file_is_tested() -> None:
    files = {path.name for path in FOLDER.glob("*.tpz")}
    assert files == {f"v{container.VERSION}-{name}.tpz" for name in NAMES}
    assert files == json.loads(HASHES.read_text()).keys()


def test_the_golden_tensors_are_those_that_were_written() -> None:
    tensors, steps = named_tensors()
    stored = load_tensors(FOLDER / f"v{container.VERSION}-tensors.tpz")
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = steps[name](tensor) if name in steps else tensor
        expected = expected.half().float() if name == "half" else expected
        assert torch.equal(stored[name], expected), name


def test_the_golden_lossless_file_has_every_bit() -> None:
    stored = load_tensors(FOLDER / f"v{container.VERSION}-lossless.tpz")
    tensors = exact_tensors()
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    "dtype", [torch.int16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
)
def test_raw_values_are_little_endian_on_every_machine(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = waves(6).mul(1000).to(dtype)
    data = to_bytes(values, "raw")
    monkeypatch.setattr(sys, "byteorder", "big")
    width = dtype.itemsize // (2 if dtype.is_complex else 1)
    turned = to_bytes(values, "raw")
    assert turned == b"".join(
        data[start : start + width][::-1] for start in range(0, len(data), width)
    )
    assert torch.equal(from_bytes(BitReader(turned), "raw", (6,), dtype), values)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    hashes = json.loads(HASHES.read_text()) if HASHES.exists() else {}
    for missing in sys.argv[1:]:
        file = FOLDER / f"v{container.VERSION}-{missing}.tpz"
        if not file.exists():
            write(missing, file)
            hashes[file.name] = digest(load_tensors(file))
    HASHES.write_text(json.dumps(hashes, indent=1) + "\n")
