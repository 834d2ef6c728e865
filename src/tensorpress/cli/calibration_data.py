"""Images of a data set as a model takes them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tensorpress.cli.model_source import DenseByName, LoadedModel
from tensorpress.data import DATASETS, ImageSet, Splits, batches, load
from tensorpress.data.splits import load_splits
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.measure.cost import evaluation_mode
from tensorpress.models.zoo import NETWORKS, Preprocess
from tensorpress.runs.training import EVALUATION_BATCH
from tensorpress.utils.formatting import format_shape

IMAGENET = Preprocess(scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""How models of other libraries take colour images."""

GREY = Preprocess(scale=255, mean=(0.0,), std=(1.0,))
"""How models of other libraries take grey images."""

BATCH = 64
"""Number of their images, which may be large, in memory at a time."""

SAMPLE_SIZES = {"calibration": 512, "reconstruction": 1024}
"""Number of training images that rate errors of weights, and to which layers are fitted."""

Part = Literal["test", "calibration", "reconstruction"]


def load_image_batches(
    loaded: LoadedModel,
    inputs: Sequence[Tensor] | None,
    data: str,
    root: Path | None,
    *,
    part: Part,
) -> tuple[Preprocess, Iterable[tuple[Tensor, Tensor]]]:
    """Return the preprocessing of a data set's images for a model, and batches of inputs.

    Networks of the zoo get images as in their training; other models get them at the size of
    their input, normalized as for ImageNet.

    Parameters
    ----------
    loaded : LoadedModel
        The model.
    inputs : sequence of Tensor or None
        Example inputs of the model, which show the size of its images.
    data : str
        The name of the data set.
    root : Path or None
        The folder of the data sets.
    part : {"test", "calibration", "reconstruction"}
        All test images, or a sample of the training images of a size in `SAMPLE_SIZES`.

    Raises
    ------
    InvalidArgumentError
        If the model does not take such images, or has fewer classes than the data set.
    DataNotFoundError
        If the data set is not in the folder.
    """
    net = NETWORKS.get(loaded.name or "")
    if net is not None:
        images = _select_images(load_splits(net, data, root), part)
        size = EVALUATION_BATCH if part == "test" else BATCH
        return net.preprocess, batches(images, net.preprocess, size, shuffle=False)
    shape = _input_shape(loaded, inputs, data)
    preprocess = IMAGENET if shape[0] == len(IMAGENET.mean) else GREY
    return preprocess, _resize(_select_images(load(data, root), part), shape[1:], preprocess)


def load_calibration_images(
    dense: DenseByName, data: str, root: Path | None
) -> Iterable[tuple[Tensor, Tensor]]:
    """Return batches of the training images to which ranks and factors are fitted."""
    loaded, inputs = LoadedModel(dense.name, dense.model, dense.name), dense.inputs(dense.model)
    return load_image_batches(loaded, inputs, data, root, part="reconstruction")[1]


def _select_images(splits: Splits, part: Part) -> ImageSet:
    if part == "test":
        return splits.test
    order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
    return splits.train.subset(order[: SAMPLE_SIZES[part]])


def _resize(
    images: ImageSet, size: Sequence[int], preprocess: Preprocess
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches at another size; all at once might not fit into memory."""
    for start in range(0, len(images), BATCH):
        part = images.subset(range(start, min(start + BATCH, len(images)))).resize(*size)
        yield preprocess(part.images), part.labels


def _input_shape(
    loaded: LoadedModel, inputs: Sequence[Tensor] | None, data: str
) -> tuple[int, ...]:
    """Return the shape of a model's input, without the batch.

    Raises
    ------
    InvalidArgumentError
        If the model does not take such images, or has fewer classes than the data set.
    """
    if data not in DATASETS:
        raise unknown_name("data set", data, DATASETS)
    dataset = DATASETS[data]
    shape = () if inputs is None or len(inputs) > 1 else tuple(inputs[0].shape[1:])
    classes = _count_classes(loaded.model, inputs)
    if (
        len(shape) != len(dataset.shape)
        or shape[0] != dataset.shape[0]
        or classes < dataset.classes
    ):
        takes = format_shape(shape) if shape else "unknown inputs"
        raise InvalidArgumentError(
            f"the data set {data!r} ({format_shape(dataset.shape)}, classes: {dataset.classes}) "
            f"does not fit {loaded.label} ({takes}, classes: {classes or 'unknown'})"
        )
    return shape


def _count_classes(model: nn.Module, inputs: Sequence[Tensor] | None) -> int:
    """Return the number of classes of a model, 0 if it is no classifier."""
    if inputs is None:
        return 0
    with evaluation_mode(model), torch.no_grad():
        logits = model(*inputs)
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else 0
