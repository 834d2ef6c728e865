"""The model of a command: by its name, from the file of a pressed model, or from its folder."""

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
from tensorpress.utils.module_tree import parameter_name
from tensorpress.utils.paths import did_you_mean, exists, is_folder

logger = logging.getLogger("tensorpress.cli")

MODEL_FILE = "model.tpz"
"""The file of a model in the folder of a run, or of a budget of bytes."""

_NAMED = ("", "torchvision", "timm")
"""Origins of models whose weights are random unless a file has others."""


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
    preprocess : str or None
        How it takes images, where a file or folder that was made from it says so.
    """

    name: str
    weights: Path | None
    texts: Sequence[str]
    preprocess: str | None = None

    @staticmethod
    def parse(name: str, weights: Path | None, texts: Sequence[str] | None) -> "DenseByName":
        """Return the model of a name, or of a folder in Hugging Face's layout."""
        return DenseByName(_model_name(name), weights, tuple(texts or ()))

    @property
    def loaded(self) -> "LoadedModel":
        """The model with its name, and with what the file of its weights says of its data."""
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
        images = self.preprocess or _file_origin(self.weights).preprocess
        return find_inputs(self.name, model, self.texts, images)

    def origin(self, data: str | None, preprocess: str | None) -> Origin:
        """Return what a folder with a model made from this one says, given a command's options."""
        known = _file_origin(self.weights)
        weights = None if self.weights is None else str(self.weights)
        return Origin(self.name, weights, data or known.data, preprocess or known.preprocess)

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
    """A model with the label that messages use, its name, and what its file or folder says."""

    label: str
    model: nn.Module
    name: str | None
    origin: Origin = field(default_factory=Origin)

    @property
    def images(self) -> ImageOptions | None:
        """How the model takes images, where its file or folder says it."""
        text = self.origin.preprocess
        return None if text is None else ImageOptions.parse(text)

    def inputs(self, texts: Sequence[str] | None) -> tuple[Tensor, ...] | None:
        """Return the inputs that texts describe, else the known ones, else None."""
        return find_inputs(self.name, self.model, texts or (), self.origin.preprocess)


def load_source(source: Path | None, name: str | None, weights: Path | None) -> LoadedModel:
    """Open a pressed model's file or folder, or build a dense one by its name.

    Parameters
    ----------
    source : Path or None
        A ``.tpz`` file, or a folder that ``press``, ``compress`` or ``run`` wrote.
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
        return DenseByName.parse(name, weights, None).loaded
    if weights is not None:
        raise InvalidArgumentError(f"{source} has weights of its own: leave out --weights")
    place = model_place(source)
    label, origin = str(source), read_origin(place)
    if place.is_dir() and is_dense_checkpoint(place):
        return LoadedModel(label, load_model(f"hf:{place}"), f"hf:{place}", origin)
    if not place.is_dir():
        network = open_file(place).description.network
        dense_name = name or (None if network else origin.trusted_model(place))
        if network is None and dense_name is None:
            raise ModelMismatchError(
                f"{place} holds a model that is not in the zoo: say by --model how it is built"
            )
        dense = None if dense_name is None else load_model(dense_name)
        return LoadedModel(label, tp.load(place, dense), dense_name or network, origin)
    dense_name = name or origin.trusted_model(place)
    if dense_name is not None:
        model = load_checkpoint(place, load_model(dense_name))
        return LoadedModel(label, model, dense_name, origin)
    return LoadedModel(label, load_checkpoint(place), f"hf:{place}", origin)


def model_place(source: Path) -> Path:
    """Return the file or the folder of a model: of a run or a budget of bytes the file in it.

    Raises
    ------
    DataNotFoundError
        If the path does not exist; the message has the nearest names.
    """
    if not exists(source):
        raise DataNotFoundError(f"{source}: no such file or folder{did_you_mean(source)}")
    file = source / MODEL_FILE
    return file if file.is_file() and read_plan(source) is None else source


def stored_bytes(source: Path) -> int:
    """Return the bytes that a model takes on the disk: of its file, or of a folder's tensors."""
    place = model_place(source)
    files = place.glob("*.safetensors") if place.is_dir() else [place]
    return sum(file.stat().st_size for file in files)


def read_origin(place: Path) -> Origin:
    """Return what a file or a folder says of its model; a file goes before its folder."""
    if place.is_dir():
        return Origin.read(place)
    beside = Origin.read(place.parent) if place.name == MODEL_FILE else Origin()
    opened = _file_origin(place)
    return replace(
        beside,
        data=beside.data or opened.data,
        preprocess=opened.preprocess or beside.preprocess,
    )


def find_dense(
    source: Path, name: str | None, weights: Path | None, texts: Sequence[str] | None
) -> tuple[DenseByName, Origin]:
    """Return the dense model of a pressed one, and what the pressed one says of its data.

    Parameters
    ----------
    source : Path
        The file or folder of the pressed model.
    name, weights
        The options ``--model`` and ``--weights``; by default what the source says.
    texts : sequence of str or None
        The option ``--input``.

    Raises
    ------
    InvalidArgumentError
        If nothing names the dense model.
    """
    place = model_place(source)
    origin = read_origin(place)
    known = name or origin.trusted_model(place)
    if known is None and not place.is_dir():
        known = open_file(place).description.network
    if known is None:
        raise InvalidArgumentError(f"{source} does not say what it was made from: give --model")
    if weights is None and name in (None, origin.model) and origin.weights is not None:
        stored = Path(origin.weights)
        weights = stored if stored.is_file() else None
    return replace(DenseByName.parse(known, weights, texts), preprocess=origin.preprocess), origin


def _file_origin(file: Path | None) -> Origin:
    """Return what a ``.tpz`` file says of its data; nothing of any other file."""
    if file is None or file.suffix != ".tpz":
        return Origin()
    opened = open_file(file)
    return Origin(data=opened.data, preprocess=opened.preprocess)


def _model_name(name: str) -> str:
    """Return the name of a model, which may be a folder in Hugging Face's layout.

    Raises
    ------
    DataNotFoundError
        If it looks like the path of a folder, and there is none.
    """
    if is_folder(name):
        return f"hf:{name}"
    path = name.removeprefix("hf:")
    is_path = path.startswith((".", os.sep, "~")) or (os.sep in name and ":" not in name)
    if is_path and not is_folder(path):
        raise DataNotFoundError(
            f"{path} is a file: expected the folder of a model"
            if exists(path)
            else f"no folder {path}{did_you_mean(path)}"
        )
    return name


def load_by_name(name: str, weights: Path | None) -> nn.Module:
    """Build a model, with a warning if its weights are random."""
    if weights is not None and weights.suffix == ".tpz":
        return tp.unpress(tp.load(weights, load_model(name)), inplace=True)
    model = load_model(name, weights=weights)
    if weights is None and has_random_weights(name):
        logger.warning("%s has random weights: --weights gives it trained ones", name)
    return model


def has_random_weights(name: str) -> bool:
    """Return whether a model of a name has random weights, unless a file gives it others."""
    parsed = parse_name(name)
    return parsed.origin in _NAMED and "pretrained" not in parsed.options


def find_inputs(
    name: str | None, model: nn.Module, texts: Sequence[str], preprocess: str | None = None
) -> tuple[Tensor, ...] | None:
    """Return example inputs of a model, or None where nothing says what it takes.

    Parameters
    ----------
    name : str or None
        The name of the model.
    model : nn.Module
        The model, or its skeleton.
    texts : sequence of str
        The option ``--input``, which goes before all else.
    preprocess : str, optional
        How the model takes images, which goes before the size of published weights.
    """
    if texts:
        return tuple(parse_input(text, model) for text in texts)
    if preprocess is not None:
        options = ImageOptions.parse(preprocess)
        sizes = (1, len(options.mean), *options.sides)
        return (parse_input("x".join(map(str, sizes)), model),)
    return None if name is None else default_inputs(name, model)


def require_inputs(loaded: LoadedModel, texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Return inputs that a model takes.

    Raises
    ------
    InvalidArgumentError
        If the inputs of the model are not known, or it does not run on them.
    """
    inputs = loaded.inputs(texts)
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
