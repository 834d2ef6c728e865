"""Pressing of one shard of a checkpoint, tensor by tensor."""

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
from tensorpress.utils.atomic_files import remove_leftovers
from tensorpress.utils.progress import ByteProgress


@dataclass(frozen=True)
class ShardPress:
    """Presses the shards of a checkpoint, each into a shard of the same name.

    Attributes
    ----------
    files : TensorFiles
        The dense checkpoint.
    out : Path
        The folder of the pressed shards.
    dense : nn.Module
        The dense model on the meta device.
    names : mapping of str to str
        The name in the model's state by the name in the files; tied tensors have the same name.
    stored : mapping of str to str
        The first name in the files by the name in the model's state.
    routes : mapping of str to Route
        The route of each tensor in the model's state.
    fitted : TensorFiles or None
        Outputs that are already fitted, by name.
    """

    files: TensorFiles
    out: Path
    dense: nn.Module
    names: Mapping[str, str]
    stored: Mapping[str, str]
    routes: Mapping[str, Route]
    fitted: TensorFiles | None = None

    def outputs(self, shard: str) -> dict[str, Tensor]:
        """Return the tensors of a pressed shard, on the meta device."""
        return {
            output: tensor
            for name in self.files.files[shard]
            if self._first(name) == name
            for output, tensor in self.routes[self.names[name]].outputs.items()
        }

    def press(self, shard: str, progress: ByteProgress | None = None) -> int:
        """Press a shard tensor by tensor, and return the size of the pressed shard in bytes.

        Raises
        ------
        InvalidArgumentError
            If values cannot be pressed (the message names the layer) or the shard cannot be
            written.
        ModelMismatchError
            If stored tensors differ that the model ties.
        """
        if progress is not None:
            progress.begin(shard)
        remove_leftovers(self.out / shard)
        with open_shard_writer(self.out / shard, self.outputs(shard)) as writer:
            for name in self.files.files[shard]:
                for output, values in self._press_tensor(name).items():
                    writer.write(output, values)
                if progress is not None:
                    progress.advance(self.files.tensors[name].bytes)
        return (self.out / shard).stat().st_size

    def _first(self, name: str) -> str | None:
        """Return the first stored name of a tensor, or None if the model does not use it."""
        return self.stored[self.names[name]] if name in self.names else None

    def _press_tensor(self, name: str) -> dict[str, Tensor]:
        """Return the outputs of a stored tensor by name."""
        first = self._first(name)
        if first is None:
            return {}
        route = self.routes[self.names[name]]
        fitted = self.fitted
        if fitted is not None and first == name and route.outputs.keys() <= fitted.tensors.keys():
            return {output: fitted.read(output) for output in route.outputs}
        values = self.files.read(name)
        if first != name:
            if not torch.equal(values, self.files.read(first)):
                raise ModelMismatchError(
                    f"{self.files.folder}: {name!r} and {first!r} differ, but the model ties "
                    "them: load the model and press it instead"
                )
            return {}
        try:
            if route.layer is None:
                return _copy_values(route, values)
            return press_weight(self.dense, route, values)
        except InvalidArgumentError as error:
            path = self.files.folder / self.files.tensors[name].file
            raise InvalidArgumentError(f"{path}: {error}") from None


def _copy_values(route: Route, values: Tensor) -> dict[str, Tensor]:
    """Return a tensor that is not pressed; the bias of a pressed layer gets the weight's dtype."""
    return {name: values.to(expected.dtype) for name, expected in route.outputs.items()}


def press_shard(data: bytes, shard: str) -> int:
    """Press a shard in a worker with a pickled `ShardPress`."""
    mend_torchvision()  # which a model of transformers may import
    work: ShardPress = pickle.loads(data)
    return work.press(shard)
