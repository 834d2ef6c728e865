"""What calibration data say of a model's layers, kept in a file."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import nn

from tensorpress.calibrate.batches import CalibrationBatch, collect_batches
from tensorpress.calibrate.input_moments import Moments, input_moments
from tensorpress.errors import CorruptFileError, DataNotFoundError
from tensorpress.utils.atomic_files import write_atomically

FORMAT = "tensorpress-calibration 1"


@dataclass(frozen=True)
class Calibration:
    """Second moments of the inputs of a model's layers: collected once, used as often as wanted.

    Attributes
    ----------
    moments : mapping from str to Moments
        By the names of Linear layers and convolutions; layers with one input share theirs.

    Examples
    --------
    >>> import torch, tempfile
    >>> net = nn.Sequential(nn.Linear(20, 10))
    >>> found = Calibration.collect(net, [torch.randn(100, 20)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found.save(f"{folder}/net.calibration")
    ...     again = Calibration.read(f"{folder}/net.calibration")
    >>> again.moments["0"].rows
    100
    """

    moments: Mapping[str, Moments]

    @staticmethod
    def collect(
        model: nn.Module, batches: Iterable[CalibrationBatch], *, seed: int = 0
    ) -> "Calibration":
        """Collect them, in one pass over batches as `tensorpress.press` takes them.

        Where `torch.distributed` is running, as under torchrun or accelerate, each process gives
        batches of its own, and all get the sums.
        """
        return Calibration(input_moments(model, collect_batches(batches, model), seed=seed))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file: 8n² bytes for a layer of n columns."""
        first: dict[int, str] = {}
        layers = {}
        for name, held in self.moments.items():
            leader = first.setdefault(id(held), name)
            layers[name] = {"as": leader, "rows": held.rows, "blocks": len(held.blocks)}
        tensors = {
            f"{name}.{number}": block.contiguous()
            for name in first.values()
            for number, block in enumerate(self.moments[name].blocks)
        }
        metadata = {"format": FORMAT, "layers": json.dumps(layers)}
        write_atomically(path, safetensors.torch.save(tensors, metadata))

    @staticmethod
    def read(path: str | os.PathLike[str]) -> "Calibration":
        """Read what `save` has written.

        Raises
        ------
        DataNotFoundError
            Where there is no such file.
        CorruptFileError
            For a file that is something else, or damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CorruptFileError(f"{os.fspath(path)} is no file of calibration data")
                held: dict[str, Moments] = {}
                found = {}
                for name, about in json.loads(metadata["layers"]).items():
                    leader = about["as"]
                    if leader not in held:
                        blocks = [file.get_tensor(f"{leader}.{k}") for k in range(about["blocks"])]
                        held[leader] = Moments(blocks, about["rows"])
                    found[name] = held[leader]
        except FileNotFoundError:
            raise DataNotFoundError(f"there is no file {os.fspath(path)}") from None
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CorruptFileError(
                f"{os.fspath(path)} is no file of calibration data, or damaged: {error}"
            ) from error
        return Calibration(found)
