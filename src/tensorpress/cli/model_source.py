"""The model of a command: by its name, from the file of a pressed model, or from its folder."""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

import tensorpress as tp
from tensorpress.checkpoints import load_checkpoint
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.tensor_names import match_tensor_names
from tensorpress.codec.tpz_file import open_file
from tensorpress.errors import InvalidArgumentError, ModelMismatchError, TensorPressError
from tensorpress.hugging_face.pressed_config import read_plan
from tensorpress.models import check_inputs, default_inputs, load_model, parse_input, parse_name
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.config_parsing import parse_json
from tensorpress.utils.module_tree import parameter_name

logger = logging.getLogger("tensorpress.cli")

ORIGIN = "origin.json"
"""The file of a folder that says by which name its dense model was built."""

_TRUSTED = ("", "torchvision", "timm")
"""Origins of models that a folder may name: to build them runs no code of the folder's author."""


@dataclass
class DenseByName:
    """A dense model by its name, whose values are loaded when they are needed.

    Attributes
    ----------
    name : str
        The name of the model.
    weights : Path or None
        The file of its weights.
    texts : sequence of str
        The example inputs as the command line writes them.
    """

    name: str
    weights: Path | None
    texts: Sequence[str]

    @staticmethod
    def parse(name: str, weights: Path | None, texts: Sequence[str] | None) -> "DenseByName":
        """Return the model of a name, or of a folder in Hugging Face's layout."""
        model = f"hf:{name}" if Path(name).is_dir() else name
        return DenseByName(model, weights, tuple(texts or ()))

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model on the meta device, with checked inputs."""
        try:
            model = load_model(self.name, meta=True)
            self._check(model)
        except TensorPressError as error:
            if "meta" not in str(error.__cause__):
                raise
            # It looks at values, when it is built or when it runs.
            self._check(self.model)
            return self.model
        return model

    @cached_property
    def model(self) -> nn.Module:
        """The model with its values."""
        return load_by_name(self.name, self.weights)

    def inputs(self, model: nn.Module) -> tuple[Tensor, ...] | None:
        """Return example inputs for the model or its skeleton, or None if they are not known."""
        return find_inputs(self.name, model, self.texts)

    def weight(self, layer: str) -> Tensor:
        """Return the weight of a layer, from a folder without the other weights of the model."""
        if self._stored is None:
            return self.model.get_parameter(parameter_name(self.model, layer))
        files, names = self._stored
        return files.read(names[parameter_name(self.skeleton, layer)])

    @cached_property
    def _stored(self) -> tuple[TensorFiles, Mapping[str, str]] | None:
        """The tensors of a folder, and their names in its files by their names in the model."""
        parsed = parse_name(self.name)
        if parsed.origin != "hf" or not any(Path(parsed.name).glob("*.safetensors")):
            return None
        files = TensorFiles(parsed.name)
        names = match_tensor_names(self.skeleton, files)
        return files, {in_model: in_file for in_file, in_model in names.items()}

    def _check(self, model: nn.Module) -> None:
        inputs = self.inputs(model)
        if inputs is not None:
            check_inputs(model, inputs)


@dataclass(frozen=True)
class LoadedModel:
    """A model with the label that messages use, and the name by which it was built."""

    label: str
    model: nn.Module
    name: str | None


def load_source(source: Path | None, name: str | None, weights: Path | None) -> LoadedModel:
    """Open a pressed model's file or folder, or build a dense one by its name.

    Parameters
    ----------
    source : Path or None
        A ``.tpz`` file, or a folder that ``press`` wrote.
    name : str or None
        The name of the dense model. With a source it is needed if the source does not name it.
    weights : Path or None
        The file of the model's weights, without a source.

    Raises
    ------
    TensorPressError
        If neither source nor name is given, weights come twice, or something cannot be loaded.
    """
    if source is None:
        if name is None:
            raise InvalidArgumentError("give a .tpz file, a folder, or a model by --model")
        return LoadedModel(name, load_by_name(name, weights), name)
    if weights is not None:
        raise InvalidArgumentError(f"{source} has weights of its own: leave out --weights")
    if not source.is_dir():
        network = name or tp.inspect(source).network
        dense = None if name is None else load_model(name)
        return LoadedModel(str(source), tp.load(source, dense), network)
    if is_dense_checkpoint(source):
        return LoadedModel(str(source), load_model(f"hf:{source}"), f"hf:{source}")
    origin = name or read_origin(source)
    if origin is not None:
        return LoadedModel(str(source), load_checkpoint(source, load_model(origin)), origin)
    return LoadedModel(str(source), load_checkpoint(source), f"hf:{source}")


def stored_data_name(source: Path | None) -> str | None:
    """Return the name of the data that a ``.tpz`` file is for, None if it does not say it."""
    return None if source is None or source.is_dir() else open_file(source).data


def load_by_name(name: str, weights: Path | None) -> nn.Module:
    """Build a model, with a warning if its weights are random."""
    model = load_model(name, weights=weights)
    if weights is None and has_random_weights(name):
        logger.warning("%s has random weights: --weights gives it trained ones", name)
    return model


def has_random_weights(name: str) -> bool:
    """Return whether a model of a name has random weights, unless a file gives it others."""
    parsed = parse_name(name)
    return parsed.origin in _TRUSTED and "pretrained" not in parsed.options


def find_inputs(
    name: str | None, model: nn.Module, texts: Sequence[str]
) -> tuple[Tensor, ...] | None:
    """Return the inputs that texts describe, else the known inputs of a model, else None."""
    if texts:
        return tuple(parse_input(text, model) for text in texts)
    return None if name is None else default_inputs(name, model)


def require_inputs(loaded: LoadedModel, texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Return inputs that a model takes.

    Raises
    ------
    InvalidArgumentError
        If the inputs of the model are not known, or it does not run on them.
    """
    inputs = find_inputs(loaded.name, loaded.model, texts)
    if inputs is None:
        raise InvalidArgumentError(
            f"nobody knows which inputs {loaded.label} takes: say it by --input, as in "
            "--input 1x3x224x224"
        )
    check_inputs(loaded.model, inputs)
    return inputs


def is_dense_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a model of transformers that was not pressed."""
    return (folder / "config.json").is_file() and read_plan(folder) is None


def count_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def write_origin(folder: Path, name: str) -> None:
    """Write the name of a folder's dense model, unless the folder has a config of transformers."""
    if parse_name(name).origin == "hf":
        return
    write_atomically(folder / ORIGIN, json.dumps({"model": name}).encode())


def read_origin(folder: Path) -> str | None:
    """Return the name of a folder's dense model, or None if the folder does not have it.

    Raises
    ------
    ModelMismatchError
        If the name is of a function, which only a user may name.
    """
    name = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        name = str(parse_json((folder / ORIGIN).read_bytes())["model"])
    if name is not None and parse_name(name).origin not in _TRUSTED:
        raise ModelMismatchError(
            f"{folder} is a pressed {name}: to build that runs code, so say it by --model {name}"
        )
    return name
