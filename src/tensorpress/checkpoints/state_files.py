"""Files of the hidden states between a model's blocks, read one batch at a time."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tensorpress.checkpoints.safetensors_writer import open_shard_writer
from tensorpress.errors import CorruptFileError
from tensorpress.utils.atomic_files import make_folder


class StateFiles:
    """The hidden states of all batches before each block, in float32, in one file per block.

    Parameters
    ----------
    folder : Path
        The folder, which is created if needed.
    shapes : sequence of torch.Size
        The shape of the states of each batch.

    Examples
    --------
    >>> import tempfile
    >>> states = StateFiles(Path(tempfile.mkdtemp()), [torch.Size([2])])
    >>> states.write(0, [torch.tensor([1.0, 2.0])])
    >>> states.read(0, 0)
    tensor([1., 2.])
    """

    def __init__(self, folder: Path, shapes: Sequence[torch.Size]) -> None:
        make_folder(folder)
        self._folder, self._shapes = folder, shapes

    def __contains__(self, block: int) -> bool:
        return self._path(block).is_file()

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._shapes)

    def read(self, block: int, place: int) -> Tensor:
        """Return the states of one batch before a block.

        Raises
        ------
        CorruptFileError
            If the file is missing or damaged.
        """
        path = self._path(block)
        try:
            with safe_open(path, framework="pt") as file:
                state: Tensor = file.get_tensor(str(place)).clone()
        except (SafetensorError, OSError) as error:
            raise CorruptFileError(
                f"{path} cannot be read ({error}): delete {path.parent.parent} and press again"
            ) from None
        return state

    def write(self, block: int, states: Iterable[Tensor]) -> None:
        """Write the states of all batches before a block; an incomplete file never appears."""
        header = {str(i): torch.empty(shape, device="meta") for i, shape in enumerate(self._shapes)}
        with open_shard_writer(self._path(block), header) as writer:
            for place, state in enumerate(states):
                writer.write(str(place), state)

    def remove(self, block: int) -> None:
        """Remove the states before a block, if any."""
        with suppress(FileNotFoundError):
            self._path(block).unlink()

    def _path(self, block: int) -> Path:
        return self._folder / f"{block:04d}.safetensors"
