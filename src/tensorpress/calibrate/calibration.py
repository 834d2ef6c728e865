"""Calibration of a model, collected from data once and saved to a file."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import nn

from tensorpress.calibrate.batches import CalibrationBatch, collect_batches
from tensorpress.calibrate.input_moments import Moments, input_moments
from tensorpress.errors import CorruptFileError
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.config_parsing import parse_json
from tensorpress.utils.module_tree import unwrap
from tensorpress.utils.paths import check_file

FORMAT = "tensorpress-calibration 1"


@dataclass(frozen=True)
class Calibration:
    """Second moments of the inputs of a model's layers, for repeated use.

    Attributes
    ----------
    moments : mapping of str to Moments
        The moments by the names of Linear layers and convolutions; layers with the same input share
        one object.

    Examples
    --------
    >>> import torch, tempfile
    >>> net = nn.Sequential(nn.Linear(20, 10))
    >>> calibration = Calibration.collect(net, [torch.randn(100, 20)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     calibration.save(f"{folder}/net.calibration")
    ...     loaded = Calibration.load(f"{folder}/net.calibration")
    >>> loaded.moments["0"].rows
    100
    """

    moments: Mapping[str, Moments]

    @staticmethod
    def collect(
        model: nn.Module, batches: Iterable[CalibrationBatch], *, seed: int = 0
    ) -> "Calibration":
        """Collect the moments in one pass over batches.

        If `torch.distributed` is initialized, as under torchrun or accelerate, each process passes
        its batches, and all get the sums over all processes.

        Parameters
        ----------
        model : nn.Module
            The model; it is run in eval mode.
        batches : iterable
            Calibration data, as for `tensorpress.press`.
        seed : int
            Seed of the sampled positions.

        Raises
        ------
        InvalidArgumentError
            If there are no batches, or an input of a layer is not finite; the message names it.
        """
        model = unwrap(model)
        return Calibration(input_moments(model, collect_batches(batches, model), seed=seed))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, which takes 8n² bytes for a layer of n columns."""
        leaders: dict[int, str] = {}  # the first layer of each object
        layers = {}
        for name, moments in self.moments.items():
            leader = leaders.setdefault(id(moments), name)
            layers[name] = {"as": leader, "rows": moments.rows, "blocks": len(moments.blocks)}
        tensors = {
            f"{name}.{number}": block.contiguous()
            for name in leaders.values()
            for number, block in enumerate(self.moments[name].blocks)
        }
        metadata = {"format": FORMAT, "layers": json.dumps(layers)}
        write_atomically(path, safetensors.torch.save(tensors, metadata))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Calibration":
        """Read a file that `save` wrote.

        Raises
        ------
        DataNotFoundError
            If the file does not exist.
        CorruptFileError
            If the file is not calibration data, or is damaged.
        """
        check_file(path)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CorruptFileError(f"{os.fspath(path)} is not a calibration file")
                by_leader: dict[str, Moments] = {}
                moments = {}
                for name, layer in parse_json(metadata["layers"]).items():
                    leader = layer["as"]
                    if leader not in by_leader:
                        blocks = [file.get_tensor(f"{leader}.{k}") for k in range(layer["blocks"])]
                        by_leader[leader] = Moments(blocks, layer["rows"])
                    moments[name] = by_leader[leader]
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CorruptFileError(
                f"{os.fspath(path)} is not a calibration file, or is damaged: {error}"
            ) from error
        return Calibration(moments)
