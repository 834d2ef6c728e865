"""Range coding of many arrays of symbols in one stream, at the entropy of their tables."""

from collections.abc import Sequence

import numpy as np
from constriction import stream
from numpy.typing import NDArray

from tensorpress.codec.priors import Prior
from tensorpress.errors import CorruptFileError

Symbols = NDArray[np.int32]

_STATE_BYTES = 8  # of the encoder's interval
_MOST_BYTES = 4  # of one symbol: the rarest takes 24 bits and a little for rounding


def encode(arrays: Sequence[Symbols], priors: Sequence[Prior]) -> bytes:
    """Encode arrays of symbols, one after the other, each under its own table.

    Parameters
    ----------
    arrays : sequence of ndarray of int32
        Rank 1. Every symbol has an entry in the table of its array.
    priors : sequence of Prior
        One for each array.

    Returns
    -------
    bytes
        The stream: about the sum of the symbols' information, and less than a byte more on average.

    References
    ----------
    .. [1] R. Bamler, "Understanding entropy coding with asymmetric numeral systems (ANS): a
       statistician's perspective", arXiv:2201.01741 (2022); the `constriction` library.

    Examples
    --------
    >>> import numpy as np
    >>> from tensorpress.codec.priors import parametric_prior
    >>> prior = parametric_prior(70, reach=32)
    >>> data = encode([np.array([0, -3, 2, 1], np.int32)], [prior])
    >>> decode(data, [4], [prior])[0].tolist()
    [0, -3, 2, 1]
    """
    encoder = stream.queue.RangeEncoder()
    for symbols, prior in zip(arrays, priors, strict=True):
        if symbols.size and len(prior.counts) > 1:
            encoder.encode(symbols - np.int32(prior.lowest), _model(prior))
    return _shortest(encoder)


def decode(data: bytes, sizes: Sequence[int], priors: Sequence[Prior]) -> list[Symbols]:
    """Decode what `encode` returned.

    Parameters
    ----------
    data : bytes
        The stream.
    sizes : sequence of int
        Number of symbols of each array.
    priors : sequence of Prior
        The tables they were encoded with.

    Raises
    ------
    CorruptFileError
        If the stream cannot come from `encode` with these tables, or holds more symbols. Not every
        damage shows: the file's checksum is there for that.
    """
    coded = sum(n for n, prior in zip(sizes, priors, strict=True) if len(prior.counts) > 1)
    if len(data) > (_MOST_BYTES * (coded + 2) if coded else 0):
        raise CorruptFileError("there are data after the coded values")
    words = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), ">u4").astype(np.uint32)
    decoder = stream.queue.RangeDecoder(words)
    arrays = []
    for size, prior in zip(sizes, priors, strict=True):
        if size and len(prior.counts) > 1:
            try:
                indices = decoder.decode(_model(prior), size)
            except AssertionError as error:  # what constriction raises for an impossible stream
                raise CorruptFileError("the coded values are damaged") from error
            indices += np.int32(prior.lowest)
            arrays.append(indices)
        else:
            arrays.append(np.full(size, prior.lowest, np.int32))
    return arrays


def _model(prior: Prior) -> stream.model.Categorical:
    """Return the model whose counts are exactly those of the table.

    With ``perfect=False``, constriction gives each of n symbols one count and shares the other
    2**24 - n out in proportion to the probabilities: counts less one leave nothing to round.
    """
    return stream.model.Categorical((prior.counts - 1).astype(np.float64), perfect=False)


def _shortest(encoder: stream.queue.RangeEncoder) -> bytes:
    """Return the shortest bytes that decode correctly when followed by zeros.

    Any point of the encoder's final interval does; the one with most trailing zero bytes is taken.
    """
    data: bytes = encoder.get_compressed().astype(">u4").tobytes()
    words, (low, width) = encoder.pos()
    head, tail = data[: 4 * words], data[4 * words :]
    sealed = int.from_bytes(tail.ljust(_STATE_BYTES, b"\0"), "big")
    limit, end = 1 << (8 * _STATE_BYTES), low + width
    if sealed < low:  # the interval spans a carry, and constriction has carried into the head
        low, end = 0, end - limit
    for zeros in range(8 * _STATE_BYTES, -1, -8):
        point = -(-low >> zeros) << zeros
        if point < min(end, limit):
            break
    last: bytes = point.to_bytes(_STATE_BYTES, "big")
    return (head + last).rstrip(b"\0")
