"""Pressing one shard of a checkpoint, tensor by tensor."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.safetensors_writer import open_shard_writer
from tensorpress.checkpoints.tensor_names import Route, press_weight
from tensorpress.errors import InvalidArgumentError, ModelMismatchError
from tensorpress.models.torchvision import mend_torchvision
from tensorpress.utils.progress import ByteProgress


@dataclass(frozen=True)
class ShardPress:
    """Makes a pressed shard of every shard of a checkpoint.

    Parameters
    ----------
    files : TensorFiles
        The dense checkpoint.
    out : Path
        The folder of the pressed shards, which have the same names.
    dense : nn.Module
        The dense model on the meta device.
    names : mapping of str to str
        From names in the files to names in the model's state; tied tensors have one.
    stored : mapping of str to str
        And back, to the first name in the files.
    ways : mapping of str to Route
        What becomes of each tensor of the model's state.
    """

    files: TensorFiles
    out: Path
    dense: nn.Module
    names: Mapping[str, str]
    stored: Mapping[str, str]
    ways: Mapping[str, Route]

    def outputs(self, shard: str) -> dict[str, Tensor]:
        """Return what a pressed shard holds, without values."""
        return {
            output: tensor
            for name in self.files.files[shard]
            if self._first(name) == name
            for output, tensor in self.ways[self.names[name]].outputs.items()
        }

    def press(self, shard: str, progress: ByteProgress | None = None) -> int:
        """Press a shard tensor by tensor, and return the size of the pressed one in bytes.

        Raises
        ------
        InvalidArgumentError
            For values that cannot be pressed (naming the layer), or where it cannot be written.
        ModelMismatchError
            Where tensors that the model ties differ.
        """
        if progress is not None:
            progress.begin(shard)
        for leftover in self.out.glob(f".{shard}.*.tmp"):  # of whoever was killed here
            leftover.unlink(missing_ok=True)
        with open_shard_writer(self.out / shard, self.outputs(shard)) as writer:
            for name in self.files.files[shard]:
                for output, values in self._pressed(name).items():
                    writer.write(output, values)
                if progress is not None:
                    progress.advance(self.files.tensors[name].bytes)
        return (self.out / shard).stat().st_size

    def _first(self, name: str) -> str | None:
        """Return the first name in the files of the tensor of a name; None if it is not used."""
        own = self.names.get(name)
        return None if own is None else self.stored[own]

    def _pressed(self, name: str) -> dict[str, Tensor]:
        """Return what a stored tensor becomes, by name."""
        first = self._first(name)
        if first is None:
            return {}
        values = self.files.read(name)
        if first != name:
            if not torch.equal(values, self.files.read(first)):
                raise ModelMismatchError(
                    f"{self.files.folder}: {name!r} and {first!r} differ, but the model ties "
                    "them: press the loaded model"
                )
            return {}
        way = self.ways[self.names[name]]
        if way.layer is None:
            return dict.fromkeys(way.outputs, values)
        try:
            return press_weight(self.dense, way, values)
        except InvalidArgumentError as error:
            path = self.files.folder / self.files.tensors[name].file
            raise InvalidArgumentError(f"{path}: {error}") from None


def press_shard(data: bytes, shard: str) -> int:
    """Press a shard in a worker, by a pickled `ShardPress`; see `ShardPress.press`."""
    mend_torchvision()  # which a model of transformers may import
    work: ShardPress = pickle.loads(data)
    return work.press(shard)
