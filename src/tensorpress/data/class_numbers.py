"""The class numbers of a model for the class names of a source."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from tensorpress.data.source import Source
from tensorpress.errors import InvalidArgumentError
from tensorpress.models.names import parse_name
from tensorpress.models.optional_imports import require
from tensorpress.models.torchvision import mend_torchvision, torchvision_models

_IMAGENET = 1000


def class_numbers(
    source: Source, name: str | None, model: nn.Module, outputs: int | None
) -> tuple[int, ...]:
    """Return the model's class number for every class name of a source.

    If the model's config, torchvision's published weights or ImageNet's synsets list all names, the
    numbers are those of the list. Otherwise there must be as many classes as outputs, in the same
    order.

    Parameters
    ----------
    source : Source
        The source, with class names.
    name : str or None
        The name of the model.
    model : nn.Module
        The model.
    outputs : int or None
        Number of outputs; None if it is not a classifier.

    Raises
    ------
    InvalidArgumentError
        If it is unclear which classes are meant.

    Examples
    --------
    >>> class_numbers(Source("pets", [], classes=("cat", "dog")), None, nn.Identity(), 2)
    (0, 1)
    """
    for known in _names_of_classes(name, model, outputs):
        places = {text.lower(): place for place, text in enumerate(known)}
        if all(text.lower() in places for text in source.classes):
            return tuple(places[text.lower()] for text in source.classes)
    if outputs is None or outputs == len(source.classes):
        return tuple(range(len(source.classes)))
    shown = ", ".join(source.classes[:3]) + (", …" if len(source.classes) > 3 else "")
    raise InvalidArgumentError(
        f"{source.name} has {len(source.classes)} classes ({shown}), but {name or 'the model'} has "
        f"{outputs} and no list with these names: name the folders by the numbers of the model's "
        "classes"
    )


def _names_of_classes(name: str | None, model: Any, outputs: int | None) -> list[Sequence[str]]:
    """Return all known lists of class names of a model."""
    lists: list[Sequence[str]] = []
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if labels:
        lists.append([str(labels[number]) for number in sorted(labels)])
    parsed = None if name is None else parse_name(name)
    if parsed is not None and parsed.origin == "torchvision":
        published = torchvision_models().get_model_weights(parsed.name)
        lists.append(next(iter(published)).meta.get("categories", ()))
    if getattr(model, "pretrained_cfg", None) and outputs == _IMAGENET:
        mend_torchvision()
        lists.append(require("timm.data", "a model of timm").ImageNetInfo().label_names())
    return [known for known in lists if outputs is None or len(known) == outputs]
