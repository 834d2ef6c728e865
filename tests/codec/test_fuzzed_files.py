"""Files with a valid checksum and random damage."""

from pathlib import Path
from typing import Any

import msgpack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from tpz_models import own

import tensorpress as tp
from tensorpress.codec import container
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
def altered(draw: st.DrawFn, header: Any) -> Any:
    """The header with one of its parts, at any depth, replaced by something else."""
    if isinstance(header, (list, tuple)) and header and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(header) - 1))
        return [*header[:place], draw(altered(header[place])), *header[place + 1 :]]
    return draw(TREES)


def outcome(path: Path, header: Any, sections: Any, model: nn.Module | None = None) -> None:
    """Read a file; either it is refused, or what comes back is a whole model."""
    try:
        msgpack.packb(header)
        container.write(path, header, sections)
    except (ValueError, OverflowError):
        return
    for read in (lambda: tp.load(path, model), lambda: tp.inspect(path)):
        try:
            found = read()
        except (CorruptFileError, ModelMismatchError):
            continue
        assert isinstance(found, nn.Module) or found.size == path.stat().st_size


FUZZ = settings(
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(data=st.data())
def test_altered_headers_of_the_zoo(
    tmp_path: Path, zoo_file: container.Container, data: st.DataObject
) -> None:
    header = data.draw(altered(zoo_file.header))
    outcome(tmp_path / "hostile.tpz", header, zoo_file.sections)


@FUZZ
@given(data=st.data())
def test_altered_headers_of_own_models(
    tmp_path: Path, own_file: container.Container, data: st.DataObject
) -> None:
    header = data.draw(altered(own_file.header))
    outcome(tmp_path / "hostile.tpz", header, own_file.sections, own())


@FUZZ
@given(data=st.data())
def test_altered_sections(
    tmp_path: Path, own_file: container.Container, data: st.DataObject
) -> None:
    sections = [bytearray(section) for section in own_file.sections]
    for _ in range(data.draw(st.integers(1, 4))):
        section = sections[data.draw(st.integers(0, 1))]
        place = data.draw(st.integers(0, len(section) - 1))
        section[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 3))
    spec, payload = bytes(sections[0]), bytes(sections[1])
    outcome(tmp_path / "hostile.tpz", own_file.header, [spec, payload[: len(payload) - cut]], own())
