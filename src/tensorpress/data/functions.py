"""Data returned by a function of any importable module."""

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tensorpress.data.images import ImageSet, Splits
from tensorpress.data.saved_datasets import source_of_dataset
from tensorpress.data.source import Batches, Example, Examples, Part, Source, name_errors
from tensorpress.errors import InvalidArgumentError
from tensorpress.models.factory import import_function
from tensorpress.models.names import parse_name
from tensorpress.models.torchvision import mend_torchvision

FORMS = (
    "a DataLoader or another iterable of batches, a Dataset of examples, or a mapping of them "
    "by train and test"
)
_BATCH = 64


class DatasetExamples:
    """The examples of a map-style `torch.utils.data.Dataset`: contents, or (content, label).

    Targets that are not classes, as in regression, are left out.
    """

    def __init__(self, name: str, dataset: Any) -> None:
        self._name, self._dataset = name, dataset

    def __len__(self) -> int:
        with name_errors(self._name):
            return len(self._dataset)

    def __getitem__(self, index: int, /) -> Example:
        with name_errors(self._name):
            example = self._dataset[index]
        if isinstance(example, tuple | list) and len(example) == 2:
            content, label = example
            if isinstance(label, Tensor) and not label.ndim and not label.is_floating_point():
                label = label.item()
            return content, int(label) if isinstance(label, Integral) else None
        return example, None


def read_function(text: str) -> Source:
    """Call a function named ``package.module:function`` and return its data.

    Keyword arguments follow after commas: ``torchvision.datasets:CIFAR10,root=data,train=false``.
    Modules in the current folder can be imported as well.

    Raises
    ------
    InvalidArgumentError
        If there is no such function, it raises an error, or it does not return data.

    Examples
    --------
    >>> source = read_function("tensorpress.data:load,name=digits")
    >>> len(source.train), len(source.test)
    (1201, 596)
    """
    parsed = parse_name(text)
    if parsed.origin.startswith("torchvision"):
        mend_torchvision()
    function = import_function(parsed.origin, parsed.name)
    with name_errors(text):
        data = function(**parsed.options)
    if isinstance(data, Splits):
        return Source(text, data.test, data.train)
    if _is_hugging_face(data):
        return source_of_dataset(text, data)
    if isinstance(data, Mapping):
        return Source.from_parts(text, {key: _part(text, part) for key, part in data.items()})
    return Source(text, _part(text, data))


def _is_hugging_face(data: object) -> bool:
    return type(data).__module__.startswith("datasets.") and hasattr(data, "save_to_disk")


def _part(text: str, data: object) -> Part:
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, IterableDataset):
        return Batches(DataLoader(data, batch_size=_BATCH), text)
    if isinstance(data, Dataset):
        examples: Examples = DatasetExamples(text, data)
        return examples
    if isinstance(data, Iterable) and not isinstance(data, str | bytes):
        return Batches(data, text)
    raise InvalidArgumentError(f"{text} returns {type(data).__name__}: expected {FORMS}")
