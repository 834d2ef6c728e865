"""Images of a data set as a model takes them."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tensorpress.cli.model_source import DenseByName, Subject
from tensorpress.data import DATASETS, ImageSet, Splits, batches, load
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.measure.cost import evaluation_mode
from tensorpress.models.zoo import NETWORKS, Preprocess
from tensorpress.models.zoo.splits import load_splits
from tensorpress.runs.training import EVALUATION_BATCH
from tensorpress.utils.formatting import format_shape

IMAGENET = Preprocess(scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What models of other libraries are given colour images by."""

GREY = Preprocess(scale=255, mean=(0.0,), std=(1.0,))
"""And grey ones."""

BATCH = 64
"""How many of their images, which may be large, are in memory at a time."""

DRAWN = {"calibration": 512, "reconstruction": 1024}
"""How many training images say what matters in a model, and how many its layers are fitted to."""

Part = Literal["test", "calibration", "reconstruction"]


def image_batches(
    subject: Subject, inputs: Sequence[Tensor] | None, data: str, root: Path | None, *, part: Part
) -> tuple[Preprocess, Iterable[tuple[Tensor, Tensor]]]:
    """Return how images of a data set become inputs of a model, and batches of them.

    Networks of the zoo get images as they were trained with; other models get them at the size of
    their input, normalized as for ImageNet. For calibration a few training images are drawn.

    Raises
    ------
    InvalidArgumentError
        If the model does not take such images, or does not tell so many classes.
    DataNotFoundError
        If the data set is not in the folder.
    """
    net = NETWORKS.get(subject.name or "")
    if net is not None:
        images = _select_images(load_splits(net, data, root), part)
        size = EVALUATION_BATCH if part == "test" else BATCH
        return net.preprocess, batches(images, net.preprocess, size, shuffle=False)
    shape = _input_shape(subject, inputs, data)
    preprocess = IMAGENET if shape[0] == len(IMAGENET.mean) else GREY
    return preprocess, _resize(_select_images(load(data, root), part), shape[1:], preprocess)


def calibration_images(
    dense: DenseByName, data: str, root: Path | None
) -> Iterable[tuple[Tensor, Tensor]]:
    """Return batches of the training images that ranks and factors are fitted to."""
    subject, inputs = Subject(dense.name, dense.model, dense.name), dense.inputs(dense.model)
    return image_batches(subject, inputs, data, root, part="reconstruction")[1]


def _select_images(splits: Splits, part: Part) -> ImageSet:
    if part == "test":
        return splits.test
    drawn = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
    return splits.train.subset(drawn[: DRAWN[part]])


def _resize(
    images: ImageSet, size: Sequence[int], preprocess: Preprocess
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches at another size; all at once might not fit into memory."""
    for start in range(0, len(images), BATCH):
        part = images.subset(range(start, min(start + BATCH, len(images)))).resize(*size)
        yield preprocess(part.images), part.labels


def _input_shape(subject: Subject, inputs: Sequence[Tensor] | None, data: str) -> tuple[int, ...]:
    """Return the shape of a model's input, without the batch.

    Raises
    ------
    InvalidArgumentError
        If the model does not take such images, or does not tell so many classes.
    """
    if data not in DATASETS:
        raise unknown_name("data set", data, DATASETS)
    known = DATASETS[data]
    shape = () if inputs is None or len(inputs) > 1 else tuple(inputs[0].shape[1:])
    classes = _classes(subject.model, inputs)
    if len(shape) != len(known.shape) or shape[0] != known.shape[0] or classes < known.classes:
        takes = format_shape(shape) if shape else "unknown inputs"
        raise InvalidArgumentError(
            f"the data set {data!r} ({format_shape(known.shape)}, classes: {known.classes}) does "
            f"not fit {subject.label} ({takes}, classes: {classes or 'unknown'})"
        )
    return shape


def _classes(model: nn.Module, inputs: Sequence[Tensor] | None) -> int:
    """Return how many classes a model tells, 0 where it is no classifier."""
    if inputs is None:
        return 0
    with evaluation_mode(model), torch.no_grad():
        logits = model(*inputs)
    return logits.shape[1] if isinstance(logits, Tensor) and logits.ndim == 2 else 0
