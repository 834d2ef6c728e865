"""What a command is about: a model by its name, a pressed model's file, or its folder."""

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
from tensorpress.checkpoints.load import PLAN
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.tensor_names import match_tensor_names
from tensorpress.errors import InvalidArgumentError, ModelMismatchError, TensorPressError
from tensorpress.models import check_inputs, default_inputs, load_model, parse_input, parse_name
from tensorpress.utils.atomic_files import write_atomically
from tensorpress.utils.module_tree import parameter_name

logger = logging.getLogger("tensorpress.cli")

ORIGIN = "origin.json"
"""The file of a folder that says by which name its dense model was built."""

_TRUSTED = ("", "torchvision", "timm")
"""Origins of models that a folder may name: to build them runs no code of the folder's author."""


@dataclass
class DenseByName:
    """A dense model by its name: without values at first, loaded when they are asked for.

    Attributes
    ----------
    name : str
        Of the model.
    weights : Path or None
        A file of weights.
    texts : sequence of str
        Example inputs, as given.
    """

    name: str
    weights: Path | None
    texts: Sequence[str]

    @staticmethod
    def parse(name: str, weights: Path | None, texts: Sequence[str] | None) -> "DenseByName":
        """Return the model of a name, or of a folder in Hugging Face's layout."""
        named = f"hf:{name}" if Path(name).is_dir() else name
        return DenseByName(named, weights, tuple(texts or ()))

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model on the meta device, after its inputs were tried."""
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
        """Return example inputs for either of the two, None where nobody knows them."""
        return find_inputs(self.name, model, self.texts)

    def weight(self, layer: str) -> Tensor:
        """Return the weight of a layer: alone from a folder, else from the loaded model."""
        if self._stored is None:
            return self.model.get_parameter(parameter_name(self.model, layer))
        files, names = self._stored
        return files.read(names[parameter_name(self.skeleton, layer)])

    @cached_property
    def _stored(self) -> tuple[TensorFiles, Mapping[str, str]] | None:
        """The tensors of a folder, and their names there by those in the model."""
        parsed = parse_name(self.name)
        if parsed.origin != "hf" or not any(Path(parsed.name).glob("*.safetensors")):
            return None
        files = TensorFiles(parsed.name)
        return files, {own: name for name, own in match_tensor_names(self.skeleton, files).items()}

    def _check(self, model: nn.Module) -> None:
        inputs = self.inputs(model)
        if inputs is not None:
            check_inputs(model, inputs)


@dataclass(frozen=True)
class Subject:
    """A model that was opened: what to call it, its module, and by which name it was built."""

    label: str
    model: nn.Module
    name: str | None


def open_subject(source: Path | None, name: str | None, weights: Path | None) -> Subject:
    """Open a pressed model's file or folder, or build a dense one by its name.

    Parameters
    ----------
    source : Path or None
        A ``.tpz`` file, or a folder that ``press`` wrote.
    name : str or None
        The dense model. With a source it is needed where this does not say what it is.
    weights : Path or None
        Of the model, without a source.

    Raises
    ------
    TensorPressError
        If neither or too much is given, or something cannot be loaded.
    """
    if source is None:
        if name is None:
            raise InvalidArgumentError("give a .tpz file, a folder, or a model by --model")
        return Subject(name, load_by_name(name, weights), name)
    if weights is not None:
        raise InvalidArgumentError(f"{source} has weights of its own: leave out --weights")
    if not source.is_dir():
        network = name or tp.inspect(source).network
        dense = None if name is None else load_model(name)
        return Subject(str(source), tp.load(source, dense), network)
    if is_dense_checkpoint(source):
        return Subject(str(source), load_model(f"hf:{source}"), f"hf:{source}")
    named = name or read_origin(source)
    if named is not None:
        return Subject(str(source), load_checkpoint(source, load_model(named)), named)
    return Subject(str(source), load_checkpoint(source), f"hf:{source}")


def load_by_name(name: str, weights: Path | None) -> nn.Module:
    """Build a model, and say so if its weights are random."""
    model = load_model(name, weights=weights)
    parsed = parse_name(name)
    if weights is None and parsed.origin in _TRUSTED and "pretrained" not in parsed.options:
        logger.warning("%s has random weights: --weights gives it trained ones", name)
    return model


def find_inputs(
    name: str | None, model: nn.Module, texts: Sequence[str]
) -> tuple[Tensor, ...] | None:
    """Return the inputs given as text, else those a model is known to take, else None."""
    if texts:
        return tuple(parse_input(text, model) for text in texts)
    return None if name is None else default_inputs(name, model)


def require_inputs(subject: Subject, texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Return inputs that a model takes.

    Raises
    ------
    InvalidArgumentError
        If nobody knows them, or it does not take them.
    """
    inputs = find_inputs(subject.name, subject.model, texts)
    if inputs is None:
        raise InvalidArgumentError(
            f"nobody knows which inputs {subject.label} takes: say it by --input, as in "
            "--input 1x3x224x224"
        )
    check_inputs(subject.model, inputs)
    return inputs


def is_dense_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a model of transformers that was not pressed."""
    return (folder / "config.json").is_file() and not (folder / PLAN).is_file()


def write_origin(folder: Path, name: str) -> None:
    """Write down by which name a folder's dense model was built, where no config says it."""
    if parse_name(name).origin == "hf":
        return
    write_atomically(folder / ORIGIN, json.dumps({"model": name}).encode())


def read_origin(folder: Path) -> str | None:
    """Return the name of a folder's dense model, None where it does not say.

    Raises
    ------
    ModelMismatchError
        If it is a function of someone's, which only a user may name.
    """
    name = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        name = str(json.loads((folder / ORIGIN).read_bytes())["model"])
    if name is not None and parse_name(name).origin not in _TRUSTED:
        raise ModelMismatchError(
            f"{folder} is a pressed {name}: to build that runs code, so say it by --model {name}"
        )
    return name
