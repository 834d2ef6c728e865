"""Models and state dicts to a budget without training, and back."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tensorpress.calibrate.batches import CalibrationBatch, collect_batches
from tensorpress.codec.state_dict import load_tensors
from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize.file_search import Coding, ModelCoding, StateCoding
from tensorpress.quantize.rounded_model import RoundedTensor
from tensorpress.utils.atomic_files import write_atomically

_NAMED_AT_MOST = 3  # tensors in a warning

logger = logging.getLogger("tensorpress.quantize")


@dataclass(frozen=True)
class Encoded:
    """What `encode` did.

    Attributes
    ----------
    bytes : int
        Of the whole file.
    bits_per_value : float
        Of the whole file, by values stored.
    error : float
        Relative root mean square error over all rounded tensors together, without data; with
        calibration the root mean square of the tensors' errors.
    tensors : tuple of RoundedTensor
        In the order of the file.
    """

    bytes: int
    bits_per_value: float
    error: float
    tensors: tuple[RoundedTensor, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        return asdict(self)


def encode(
    source: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    target_error: float | None = None,
    bits: float | None = None,
    size: int | None = None,
    network: str | None = None,
    calibration: Iterable[CalibrationBatch] | None = None,
    seed: int = 0,
) -> Encoded:
    """Write a model or named tensors to a `.tpz` file to a budget, without training.

    Weights, all tensors of two axes or more, are rounded to multiples of a step and entropy coded;
    biases and norms likewise at steps fine enough not to matter. Of tensors without a model, those
    of fewer axes are stored as float16. Without data all weights have one step. With calibration,
    steps follow what noise in each layer does to the model's outputs, rounding errors are made up
    for by the columns not yet rounded, by layers not yet rounded (not for a target error) and by
    biases.

    Parameters
    ----------
    source : nn.Module or mapping of str to Tensor
        Pressed or not; left untouched. Of a model statistics of batch norms are merged into their
        weights and biases, which changes nothing it computes in eval mode.
    path : path-like
        The file to write or replace.
    target_error : float, optional
        Largest relative error over all weights, see `Encoded`. One of the three must be given.
    bits : float, optional
        Most bits a value, of the whole file.
    size : int, optional
        Most bytes of the whole file.
    network : str, optional
        Name of the network in `tensorpress.models.zoo` that a model is, as for `tensorpress.save`.
    calibration : iterable, optional
        Batches a model is run on: Tensors, or pairs of inputs and labels; a few hundred examples.
        Labels are not looked at.
    seed : int
        Of the choice of positions and directions that are looked at in calibration.

    Returns
    -------
    Encoded
        Bytes, bits, errors.

    Raises
    ------
    InvalidArgumentError
        For a budget that is none or cannot be met, tensors that cannot be stored (naming them),
        calibration without a model, or a file that cannot be written.
    ModelMismatchError
        If the model is not the zoo network it is said to be.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = encode(net, f"{folder}/a.tpz", size=2500)
    ...     values = decode(f"{folder}/a.tpz")
    >>> 2400 < done.bytes <= 2500, list(values)
    (True, ['0.weight', '0.bias', '2.weight', '2.bias'])
    """
    _check(path, target_error, bits, size)
    coding = _coding(source, network, calibration, seed)
    if target_error is not None:
        found = coding.within_error(target_error)
    else:
        found = coding.within_size(int((bits or 0) * coding.values / 8) if size is None else size)
    write_atomically(path, found.data)
    written = len(found.data)
    table = tuple(found.table())
    _warn_of_lost(table, path)
    return Encoded(written, 8 * written / max(coding.values, 1), found.error, table)


def decode(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a `.tpz` file by name, as `tensorpress.codec.load_tensors` does."""
    return load_tensors(path)


def _warn_of_lost(table: Sequence[RoundedTensor], path: str | os.PathLike[str]) -> None:
    """Say which tensors have nothing but zeros left."""
    lost = [tensor.name for tensor in table if tensor.zeros == 1 and tensor.error > 0]
    if lost:
        more = ", …" if len(lost) > _NAMED_AT_MOST else ""
        logger.warning(
            "%s: nothing is left of %d of %d tensors, all of whose values are rounded to zero: "
            "%s%s; a larger budget would keep some",
            os.fspath(path),
            len(lost),
            len(table),
            ", ".join(lost[:_NAMED_AT_MOST]),
            more,
        )


def _coding(
    source: nn.Module | Mapping[str, Tensor],
    network: str | None,
    calibration: Iterable[CalibrationBatch] | None,
    seed: int,
) -> Coding:
    if isinstance(source, nn.Module):
        batches = None if calibration is None else collect_batches(calibration, source)
        return ModelCoding(source, network, batches, seed)
    if calibration is not None or network is not None:
        raise InvalidArgumentError("calibration and network are of a model: give one, not tensors")
    if not isinstance(source, Mapping):
        raise InvalidArgumentError(
            f"a model or tensors by name can be encoded, not {type(source).__name__}"
        )
    return StateCoding(source)


def _check(
    path: str | os.PathLike[str], error: float | None, bits: float | None, size: int | None
) -> None:
    given = {"target_error": error, "bits": bits, "size": size}
    said = {name: value for name, value in given.items() if value is not None}
    if len(said) != 1:
        raise InvalidArgumentError("give one of target_error, bits and size")
    [(name, value)] = said.items()
    if not isfinite(value) or value <= 0 or (name == "target_error" and value >= 1):
        reach = "between 0 and 1" if name == "target_error" else "positive"
        raise InvalidArgumentError(f"{name} must be {reach}, not {value}")
    if not Path(path).absolute().parent.is_dir():
        raise InvalidArgumentError(f"{os.fspath(path)} cannot be written: its folder is missing")
