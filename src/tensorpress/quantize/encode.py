"""Encodes models and state dicts to a budget without training, and decodes them."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from torch import Tensor, nn

from tensorpress.calibrate.batches import CalibrationBatch, collect_batches
from tensorpress.codec.model_tensors import stored_tensors
from tensorpress.codec.save_load import save
from tensorpress.codec.state_dict import load_tensors, save_tensors
from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize.file_search import FileSearch, StateFileSearch
from tensorpress.quantize.model_file_search import FileTexts, ModelFileSearch
from tensorpress.quantize.rounded_model import RoundedTensor
from tensorpress.utils.atomic_files import check_writable, write_atomically

_MAX_NAMES = 3  # of tensors in a warning

logger = logging.getLogger("tensorpress.quantize")


@dataclass(frozen=True, repr=False)
class EncodeResult:
    """Size and error of a file that `encode` wrote.

    Attributes
    ----------
    bytes : int
        Bytes of the whole file.
    bits_per_value : float
        Bits of the whole file per value stored.
    error : float
        Relative root mean square error: without calibration of all rounded tensors together, with
        calibration the root mean square of the tensors' errors.
    tensors : tuple of RoundedTensor
        The rounded tensors, in the order of the file.
    """

    bytes: int
    bits_per_value: float
    error: float
    tensors: tuple[RoundedTensor, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return size and error as a line of text."""
        error = f"relative error {self.error:.4f}" if self.error else "lossless"
        return f"{self.bytes:,} bytes, {self.bits_per_value:.2f} bits per value, {error}"

    def __repr__(self) -> str:
        """Return size and error, without the tensors."""
        return f"<EncodeResult: {self}>"


def encode(
    source: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    target_error: float | None = None,
    bits: float | None = None,
    size: int | None = None,
    lossless: bool = False,
    network: str | None = None,
    data: str | None = None,
    preprocess: str | None = None,
    calibration: Iterable[CalibrationBatch] | None = None,
    passes: int = 0,
    seed: int = 0,
) -> EncodeResult:
    """Write a model or named tensors to a `.tpz` file within a budget, without training.

    Weights (tensors of two axes or more) are rounded to multiples of a step and entropy coded. The
    biases and norms of a model are rounded at negligibly fine steps; without a model, tensors of
    fewer axes are stored as float16. Without calibration all weights share one step. With
    calibration, the step of each layer follows from the effect of its noise on the model's outputs,
    and rounding errors are compensated by later columns, by later layers (not for a target error)
    and by biases.

    Parameters
    ----------
    source : nn.Module or mapping of str to Tensor
        A model or tensors by name, pressed or not, left unchanged. In the file, the statistics of
        batch norms are merged into their weights and biases, which does not change the model's
        outputs in eval mode.
    path : path-like
        The file to write or replace.
    target_error : float, optional
        Largest relative error over all weights; see `EncodeResult`. Exactly one of `target_error`,
        `bits`, `size` and `lossless` is needed.
    bits : float, optional
        Largest number of bits per value, for the whole file.
    size : int, optional
        Largest size of the file in bytes.
    lossless : bool
        Whether to keep every bit of all tensors. bfloat16 values take about a third less, float32
        values a sixth less, or half if they were trained in bfloat16.
    network : str, optional
        Name of the model's network in `tensorpress.models.zoo`, as for `tensorpress.save`.
    data : str, optional
        Name of the data that the model was trained for, as for `tensorpress.save`.
    preprocess : str, optional
        How the model takes images, as for `tensorpress.save`.
    calibration : iterable, optional
        Batches to run the model on: Tensors, or pairs of inputs and labels, which are ignored. A
        few hundred examples suffice.
    passes : int
        Most passes over the calibration data for training biases and norms, without labels, to give
        the dense model's outputs after all weights are rounded. Held-out data stop the training
        before it makes things worse. Nothing is trained if outputs differ by 1 % or less.
    seed : int
        Seed of the sampled positions and directions in calibration.

    Returns
    -------
    EncodeResult
        Size and errors of the file.

    Raises
    ------
    InvalidArgumentError
        If there is not exactly one budget or it cannot be met, a tensor cannot be stored (the
        message names it), calibration comes without a model, or the file cannot be written.
    ModelMismatchError
        If the model is not the network that `network` names.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = encode(net, f"{folder}/a.tpz", size=2500)
    ...     values = decode(f"{folder}/a.tpz")
    >>> 2400 < result.bytes <= 2500, list(values)
    (True, ['0.weight', '0.bias', '2.weight', '2.bias'])
    """
    _check_budget(path, target_error, bits, size, lossless)
    texts = FileTexts(network=network, data=data, preprocess=preprocess)
    if lossless:
        return _encode_exactly(source, path, texts, calibration)
    search = _file_search(source, calibration, passes, seed, texts)
    if target_error is not None:
        rounded = search.search_error(target_error)
    else:
        limit = int((bits or 0) * search.values / 8) if size is None else size
        rounded = search.search_size(limit)
    write_atomically(path, rounded.data)
    table = tuple(rounded.table())
    _warn_of_zeros(table, path)
    written = len(rounded.data)
    return EncodeResult(written, 8 * written / max(search.values, 1), rounded.error, table)


def _encode_exactly(
    source: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    texts: FileTexts,
    calibration: Iterable[CalibrationBatch] | None,
) -> EncodeResult:
    """Write a model or named tensors losslessly."""
    if calibration is not None:
        raise InvalidArgumentError("a lossless file takes no calibration")
    if isinstance(source, nn.Module):
        written = save(source, path, lossless=True, **texts)
        values = sum(tensor.numel() for tensor in stored_tensors(source).values())
    else:
        _check_tensors_alone(source, None, texts)
        written = save_tensors(source, path, None)
        values = sum(tensor.numel() for tensor in source.values())
    return EncodeResult(written, 8 * written / max(values, 1), 0.0, ())


def decode(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Return the tensors of a `.tpz` file by name.

    See `tensorpress.codec.state_dict.load_tensors`.
    """
    return load_tensors(path, max_bytes=max_bytes)


def _warn_of_zeros(table: Sequence[RoundedTensor], path: str | os.PathLike[str]) -> None:
    """Warn of tensors that were rounded to zeros only."""
    names = [tensor.name for tensor in table if tensor.zeros == 1 and tensor.error > 0]
    if names:
        more = ", …" if len(names) > _MAX_NAMES else ""
        logger.warning(
            "%s: all values of %d of %d tensors are rounded to zero: %s%s; use a larger budget",
            os.fspath(path),
            len(names),
            len(table),
            ", ".join(names[:_MAX_NAMES]),
            more,
        )


def _file_search(
    source: nn.Module | Mapping[str, Tensor],
    calibration: Iterable[CalibrationBatch] | None,
    passes: int,
    seed: int,
    texts: FileTexts,
) -> FileSearch:
    """Return the search for the file of a model or of tensors."""
    if isinstance(source, nn.Module):
        batches = None if calibration is None else collect_batches(calibration, source)
        return ModelFileSearch(source, batches, seed, texts, passes)
    _check_tensors_alone(source, calibration, texts)
    return StateFileSearch(source)


def _check_tensors_alone(
    source: object, calibration: Iterable[CalibrationBatch] | None, texts: FileTexts
) -> None:
    """Check that a source is tensors by name, without options that need a model."""
    if any(option is not None for option in (calibration, *texts.values())):
        raise InvalidArgumentError(
            f"calibration, {', '.join(texts)} need a model as source instead of tensors"
        )
    if not isinstance(source, Mapping):
        raise InvalidArgumentError(
            f"source must be a model or tensors by name, not {type(source).__name__}"
        )


def _check_budget(
    path: str | os.PathLike[str],
    error: float | None,
    bits: float | None,
    size: int | None,
    lossless: bool,
) -> None:
    """Check that there is exactly one budget, in its range, and a folder for the file."""
    options = {"target_error": error, "bits": bits, "size": size}
    budgets = {name: value for name, value in options.items() if value is not None}
    if len(budgets) + bool(lossless) != 1:
        raise InvalidArgumentError(
            "give exactly one budget: size, bits, target_error or lossless (--size, --bits, "
            "--target-error or --lossless)"
        )
    for name, value in options.items():
        if value is not None and not isinstance(value, int | float):
            raise InvalidArgumentError(f"{name} must be a number, not {value!r}")
    for name, value in budgets.items():
        if not isfinite(value) or value <= 0 or (name == "target_error" and value >= 1):
            condition = "between 0 and 1" if name == "target_error" else "positive"
            raise InvalidArgumentError(f"{name} must be {condition}, not {value}")
    check_writable(path)
