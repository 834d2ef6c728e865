from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorpress.codec.bit_io import BitReader
from tensorpress.codec.rans import MAX_SYMBOLS, Contexts, Values, decode_rans, encode_rans
from tensorpress.errors import CorruptFileError

NONE = np.empty(0, np.uint8)


def there_and_back(symbols: Values, contexts: Contexts, tables: int) -> bytes:
    data = encode_rans(symbols, contexts, tables)
    assert data is not None
    reader = BitReader(data)
    assert np.array_equal(decode_rans(reader, symbols.size, contexts, tables), symbols)
    reader.finish()
    return data


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 2)), min_size=1, max_size=60),
    st.integers(1, 200),
)
@settings(max_examples=30)
def test_symbols_come_back(pairs: list[tuple[int, int]], repeats: int) -> None:
    symbols = np.array([symbol for symbol, _ in pairs] * repeats, np.uint16)
    contexts = np.array([context for _, context in pairs] * repeats, np.uint8)
    there_and_back(symbols, NONE, 1)
    there_and_back(symbols, contexts, 3)


def test_size_is_about_the_entropy() -> None:
    random = np.random.default_rng(0)
    symbols = random.geometric(0.3, 50_000).astype(np.uint16)
    shares = np.bincount(symbols)[1:] / symbols.size
    shares = shares[shares > 0]
    entropy = symbols.size * float(shares @ -np.log2(shares)) / 8
    assert entropy < len(there_and_back(symbols, NONE, 1)) < 1.005 * entropy


def test_contexts_that_tell_symbols_apart_save_bits() -> None:
    random = np.random.default_rng(0)
    contexts = random.integers(0, 2, 20_000).astype(np.uint8)
    symbols = (20 * contexts + random.integers(0, 4, 20_000)).astype(np.uint16)
    together = len(there_and_back(symbols, NONE, 1))
    assert len(there_and_back(symbols, contexts, 2)) < together - 2_400


def test_symbols_of_sixteen_bits() -> None:
    there_and_back(np.array([65535, 0, 1, 65535], np.uint16), NONE, 1)


def test_one_symbol_takes_no_bytes() -> None:
    assert len(there_and_back(np.full(10**5, 7, np.uint16), NONE, 1)) < 8


def test_too_many_symbols_have_no_table() -> None:
    assert encode_rans(np.arange(MAX_SYMBOLS + 1, dtype=np.uint16), NONE, 1) is None
    there_and_back(np.arange(MAX_SYMBOLS, dtype=np.uint16), NONE, 1)


@pytest.mark.parametrize("size", [10, 5000])
def test_damage_is_an_error(size: int) -> None:
    symbols = np.random.default_rng(0).integers(0, 9, size).astype(np.uint16)
    data = there_and_back(symbols, NONE, 1)
    for end in (len(data) - 1, len(data) - 2, len(data) // 2, 3, 0):
        with pytest.raises(CorruptFileError):
            decode_rans(BitReader(data[:end]), size, NONE, 1)
    for count in (size - 1, size + 1):
        with pytest.raises(CorruptFileError):
            decode_rans(BitReader(data), count, NONE, 1)


@given(st.binary(max_size=60), st.integers(1, 50))
def test_arbitrary_bytes_give_symbols_or_an_error(data: bytes, size: int) -> None:
    with suppress(CorruptFileError):
        assert decode_rans(BitReader(data), size, NONE, 1).size == size
