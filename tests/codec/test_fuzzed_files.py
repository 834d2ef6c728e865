"""Files with a valid checksum and random damage."""

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from tpz_models import custom_model, forge_custom, save_model

import tensorpress as tp
from tensorpress.codec import container
from tensorpress.codec.header import tensor_table
from tensorpress.codec.model_tensors import stored_tensors
from tensorpress.errors import CorruptFileError, ModelMismatchError

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 400)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.sampled_from(["lenet300100", "", "ip2", "0.bias", "float32", "int64", "load"])
    | st.binary(max_size=3)
)
TREES = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=5), max_leaves=12)


@st.composite
def altered_header(draw: st.DrawFn, header: Any) -> Any:
    """The header with one of its parts, at any depth, replaced by something else."""
    if isinstance(header, (list, tuple)) and header and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(header) - 1))
        return [*header[:place], draw(altered_header(header[place])), *header[place + 1 :]]
    return draw(TREES)


def read_or_refuse(path: Path, model: nn.Module | None = None) -> None:
    """Read a file; either it is refused, or what comes back is a whole model."""
    for read in (lambda: tp.load(path, model), lambda: tp.inspect(path)):
        try:
            damaged = read()
        except (CorruptFileError, ModelMismatchError):
            continue
        assert isinstance(damaged, nn.Module) or damaged.size == path.stat().st_size


FUZZ = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(data=st.data())
def test_altered_headers_of_own_models(
    tmp_path: Path, own_model: nn.Module, data: st.DataObject
) -> None:
    table = [[t.name, list(t.shape), t.dtype] for t in tensor_table(stored_tensors(own_model))]
    header = data.draw(altered_header([[["0", [20, 30], [30, 20], 3]], table]))
    path = tmp_path / "hostile.tpz"
    try:
        forge_custom(path, header, own_model)
    except (ValueError, OverflowError):  # msgpack has no such thing
        return
    read_or_refuse(path, custom_model())


def damage(data: st.DataObject, part: bytes) -> bytes:
    damaged = bytearray(part)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        kind = data.draw(st.sampled_from(["change", "cut", "insert"]))
        if kind == "cut":
            del damaged[place:]
        elif kind == "insert":
            damaged[place:place] = data.draw(st.binary(min_size=1, max_size=4))
        elif damaged:
            damaged[place] = data.draw(st.integers(0, 255))
    return bytes(damaged)


@FUZZ
@given(data=st.data(), coder=st.sampled_from(["range", "huffman"]))
def test_altered_parts_of_own_models(
    tmp_path: Path, own_model: nn.Module, data: st.DataObject, coder: Any
) -> None:
    parts = container.read(save_model(own_model, tmp_path, coder=coder))
    path = tmp_path / "hostile.tpz"
    container.write(path, damage(data, parts.stream), damage(data, parts.payload))
    read_or_refuse(path, custom_model())


@FUZZ
@given(data=st.data())
def test_altered_streams_of_the_zoo(
    tmp_path: Path, zoo_model: nn.Module, data: st.DataObject
) -> None:
    parts = container.read(save_model(zoo_model, tmp_path, network="lenet300100"))
    path = tmp_path / "hostile.tpz"
    # The first bytes say which network and layers; all networks but small ones take their time.
    start = data.draw(st.integers(1, 12))
    container.write(path, parts.stream[:start] + damage(data, parts.stream[start:60]), b"")
    read_or_refuse(path)
