"""The model of a command: by name, or from the file or folder of a pressed model."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

import tensorpress as tp
from tensorpress.checkpoints import load_checkpoint
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.tensor_names import match_tensor_names
from tensorpress.codec.container import MAGIC
from tensorpress.codec.tpz_file import open_file
from tensorpress.data.transforms import ImageOptions
from tensorpress.errors import (
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
    TensorPressError,
)
from tensorpress.hugging_face.pressed_config import read_plan
from tensorpress.models import check_inputs, default_inputs, load_model, parse_input, parse_name
from tensorpress.models.origin import Origin
from tensorpress.models.zoo import NETWORKS
from tensorpress.utils.module_tree import parameter_name
from tensorpress.utils.paths import did_you_mean, exists, is_file, is_folder, unreadable

logger = logging.getLogger("tensorpress.cli")

MODEL_FILE = "model.tpz"
"""The model file in the folder of a run, or of compression to bytes."""

WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
"""Suffixes of files of weights, of a model that only the user knows."""

_NAMED = ("", "torchvision", "timm")
"""Origins of models whose weights are random without a weight file."""


@dataclass
class DenseByName:
    """A dense model by name, which is loaded when it is needed.

    Attributes
    ----------
    name : str
        The name of the model.
    weights : Path or None
        The weight file.
    texts : sequence of str
        The example inputs from the command line.
    preprocess : str or None
        Preprocessing of images, if the file or folder of a pressed model has it.
    """

    name: str
    weights: Path | None
    texts: Sequence[str]
    preprocess: str | None = None

    @staticmethod
    def parse(name: str, weights: Path | None, texts: Sequence[str] | None) -> "DenseByName":
        """Return the model of a name or of a folder in Hugging Face's layout."""
        return DenseByName(_model_name(name), weights, tuple(texts or ()))

    @property
    def loaded(self) -> "LoadedModel":
        """The model with its name, and the data named in its weight file."""
        return LoadedModel(self.name, self.model, self.name, _file_origin(self.weights))

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model on the meta device, with checked inputs."""
        try:
            model = load_model(self.name, meta=True)
            self._check(model)
        except TensorPressError as error:
            if "meta" not in str(error.__cause__):
                raise
            # It reads values when it is built or when it runs.
            self._check(self.model)
            return self.model
        return model

    @cached_property
    def model(self) -> nn.Module:
        """The model with its values."""
        return load_by_name(self.name, self.weights)

    def inputs(self, model: nn.Module) -> tuple[Tensor, ...] | None:
        """Return example inputs for the model or its skeleton, or None if they are unknown."""
        images = self.preprocess or _file_origin(self.weights).preprocess
        return find_inputs(self.name, model, self.texts, images)

    def origin(self, data: str | None, preprocess: str | None) -> Origin:
        """Return the origin to write to the folder of a model made from this one."""
        known = _file_origin(self.weights)
        weights = None if self.weights is None else str(self.weights)
        return Origin(self.name, weights, data or known.data, preprocess or known.preprocess)

    def weight(self, layer: str) -> Tensor:
        """Return the weight of a layer; from a folder, only this weight is read."""
        if self._stored is None:
            return self.model.get_parameter(parameter_name(self.model, layer))
        files, names = self._stored
        return files.read(names[parameter_name(self.skeleton, layer)])

    @cached_property
    def _stored(self) -> tuple[TensorFiles, Mapping[str, str]] | None:
        """The tensors of a folder, and their names in the files by their names in the model."""
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
    """A model with its label in messages, its name, and its origin."""

    label: str
    model: nn.Module
    name: str | None
    origin: Origin = field(default_factory=Origin)

    @property
    def images(self) -> ImageOptions | None:
        """Preprocessing of images, if the file or folder has it."""
        text = self.origin.preprocess
        return None if text is None else ImageOptions.parse(text)

    def inputs(
        self, texts: Sequence[str] | None, preprocess: str | None = None
    ) -> tuple[Tensor, ...] | None:
        """Return the inputs described by texts, else the known ones, else None."""
        images = preprocess or self.origin.preprocess
        return find_inputs(self.name, self.model, texts or (), images)


def load_source(source: Path | None, name: str | None, weights: Path | None) -> LoadedModel:
    """Load a pressed model from its file or folder, or a dense model by name.

    Parameters
    ----------
    source : Path or None
        A ``.tpz`` file, or a folder written by ``press``, ``compress`` or ``run``.
    name : str or None
        The name of the dense model; with a source, only needed if the source does not name it.
    weights : Path or None
        The weight file, only without a source.

    Raises
    ------
    TensorPressError
        If there is neither source nor name, both source and weight file, or loading fails.
    """
    if source is None:
        if name is None:
            raise InvalidArgumentError("expected a .tpz file, a folder, or a model by --model")
        return DenseByName.parse(name, weights, None).loaded
    if weights is not None:
        raise InvalidArgumentError(f"{source} already has weights: remove --weights")
    place = model_place(source)
    label, origin = str(source), read_origin(place)
    if place.is_dir() and is_dense_checkpoint(place):
        return LoadedModel(label, load_model(f"hf:{place}"), f"hf:{place}", origin)
    if not place.is_dir():
        network = open_file(place).description.network
        dense_name = name or (None if network else origin.trusted_model(place))
        if network is None and dense_name is None:
            raise ModelMismatchError(f"{place} has a model that is not in the zoo: set --model")
        dense = None if dense_name is None else load_model(dense_name)
        return LoadedModel(label, tp.load(place, dense), dense_name or network, origin)
    dense_name = name or origin.trusted_model(place)
    if dense_name is not None:
        model = load_checkpoint(place, load_model(dense_name))
        return LoadedModel(label, model, dense_name, origin)
    return LoadedModel(label, load_checkpoint(place), f"hf:{place}", origin)


def model_place(source: Path) -> Path:
    """Return the file or folder of a model; for the folder of a run, the model file in it.

    Raises
    ------
    DataNotFoundError
        If the path does not exist; the message suggests similar names.
    InvalidArgumentError
        If it is a file of another kind.
    """
    if not exists(source):
        raise DataNotFoundError(f"{source}: no such file or folder{did_you_mean(source)}")
    if source.suffix != ".tpz" and is_file(source) and not _starts_with_magic(source):
        weights = " (a file of weights is for --weights, with --model)"
        raise InvalidArgumentError(
            f"{source} is not a .tpz file: expected a .tpz file or the folder of a model"
            f"{weights if source.suffix in WEIGHT_FILES else ''}"
        )
    file = source / MODEL_FILE
    return file if file.is_file() and read_plan(source) is None else source


def stored_bytes(source: Path) -> int:
    """Return the size of a model on disk: of its file, or of the tensors in its folder."""
    place = model_place(source)
    files = place.glob("*.safetensors") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files)


def read_origin(place: Path) -> Origin:
    """Return the origin of a model from its file or folder; a file takes precedence."""
    if place.is_dir():
        return Origin.read(place)
    stored = Origin.read(place.parent) if place.name == MODEL_FILE else Origin()
    opened = _file_origin(place)
    return replace(
        stored,
        data=stored.data or opened.data,
        preprocess=opened.preprocess or stored.preprocess,
    )


def find_dense(
    source: Path, name: str | None, weights: Path | None, texts: Sequence[str] | None
) -> tuple[DenseByName, Origin]:
    """Return the dense model of a pressed model, and the origin of the pressed model.

    Parameters
    ----------
    source : Path
        The file or folder of the pressed model.
    name, weights
        The options ``--model`` and ``--weights``; by default those of the source.
    texts : sequence of str or None
        The option ``--input``.

    Raises
    ------
    InvalidArgumentError
        If the dense model is unknown.
    """
    place = model_place(source)
    origin = read_origin(place)
    known = name or origin.trusted_model(place)
    if known is None and not place.is_dir():
        known = open_file(place).description.network
    if known is None:
        raise InvalidArgumentError(f"{source} does not name its dense model: set --model")
    if weights is None and name in (None, origin.model) and origin.weights is not None:
        stored = Path(origin.weights)
        weights = stored if stored.is_file() else None
    return replace(DenseByName.parse(known, weights, texts), preprocess=origin.preprocess), origin


def _file_origin(file: Path | None) -> Origin:
    """Return the data and preprocessing in a ``.tpz`` file, or nothing for other files."""
    if file is None or file.suffix != ".tpz":
        return Origin()
    opened = open_file(file)
    return Origin(data=opened.data, preprocess=opened.preprocess)


def _starts_with_magic(file: Path) -> bool:
    """Return whether a file begins as a ``.tpz`` file."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise unreadable(file, error) from None


def _model_name(name: str) -> str:
    """Return the name of a model, which may be a folder in Hugging Face's layout.

    Raises
    ------
    InvalidArgumentError
        If it is the path of a file.
    DataNotFoundError
        If it looks like the path of a folder that does not exist.
    """
    if is_folder(name):
        return f"hf:{name}"
    path = name.removeprefix("hf:")
    if exists(path) and not is_folder(path) and name not in NETWORKS:
        raise InvalidArgumentError(
            f"{path} is a file of weights: use tensorpress encode {path}, or --model NAME "
            f"--weights {path}"
            if Path(path).suffix in WEIGHT_FILES
            else f"{path} is a file: expected the folder of a model"
        )
    is_path = path.startswith((".", os.sep, "~")) or (os.sep in name and ":" not in name)
    if is_path and not is_folder(path):
        raise DataNotFoundError(f"there is no folder {path}{did_you_mean(path)}")
    return name


def load_by_name(name: str, weights: Path | None) -> nn.Module:
    """Build a model, with a warning if its weights are random."""
    if weights is not None and weights.suffix == ".tpz":
        return tp.unpress(tp.load(weights, load_model(name)), inplace=True)
    model = load_model(name, weights=weights)
    if weights is None and has_random_weights(name):
        logger.warning("%s has random weights: set --weights for trained ones", name)
    return model


def has_random_weights(name: str) -> bool:
    """Return whether a model has random weights without a weight file."""
    parsed = parse_name(name)
    return parsed.origin in _NAMED and "pretrained" not in parsed.options


def find_inputs(
    name: str | None, model: nn.Module, texts: Sequence[str], preprocess: str | None = None
) -> tuple[Tensor, ...] | None:
    """Return example inputs of a model, or None if its inputs are unknown.

    Parameters
    ----------
    name : str or None
        The name of the model.
    model : nn.Module
        The model, or its skeleton.
    texts : sequence of str
        The option ``--input``, which takes precedence.
    preprocess : str, optional
        Preprocessing of images, which takes precedence over the default size.
    """
    if texts:
        return tuple(parse_input(text, model) for text in texts)
    if preprocess is not None:
        options = ImageOptions.parse(preprocess)
        sizes = (1, len(options.mean), *options.sides)
        return (parse_input("x".join(map(str, sizes)), model),)
    return None if name is None else default_inputs(name, model)


def require_inputs(loaded: LoadedModel, texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Return example inputs, and check that the model runs on them.

    Raises
    ------
    InvalidArgumentError
        If the inputs of the model are unknown, or it fails on them.
    """
    inputs = loaded.inputs(texts)
    if inputs is None:
        raise InvalidArgumentError(
            f"the inputs of {loaded.label} are unknown: set --input, for example "
            "--input 1x3x224x224"
        )
    check_inputs(loaded.model, inputs)
    return inputs


def is_dense_checkpoint(folder: Path) -> bool:
    """Return whether a folder is that of a dense Transformers model."""
    return (folder / "config.json").is_file() and read_plan(folder) is None
