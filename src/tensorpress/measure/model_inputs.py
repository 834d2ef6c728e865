"""Inputs of a model: one Tensor, several arguments, or arguments by name."""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from tensorpress.errors import InvalidArgumentError, ModelRunError, TensorPressError, first_line


@dataclass(frozen=True)
class ModelInputs:
    """The arguments of one forward pass.

    Attributes
    ----------
    positional : tuple
        Arguments by position: Tensors, scalars, and tuples, lists and dicts of these.
    named : mapping of str to Any
        Arguments by name.
    """

    positional: tuple[Any, ...]
    named: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def parse(inputs: "ExampleInputs") -> "ModelInputs":
        """Convert inputs in any of their forms.

        Parameters
        ----------
        inputs : Tensor, sequence, mapping or ModelInputs
            The only argument; arguments by position; or arguments by name. If the only argument is
            itself a list or dict, pass it in a tuple.

        Raises
        ------
        InvalidArgumentError
            If the inputs are anything else, have no Tensor, or have no examples.

        Examples
        --------
        >>> import torch
        >>> x = torch.zeros(4, 3)
        >>> [ModelInputs.parse(given).batch for given in (x, [x, 0.5], {"x": [x]}, ({"x": x},))]
        [4, 4, 4, 4]
        """
        if isinstance(inputs, ModelInputs):
            return inputs
        if isinstance(inputs, Tensor):
            result = ModelInputs((inputs,))
        elif isinstance(inputs, Mapping):
            result = ModelInputs((), dict(inputs))
        elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
            result = ModelInputs(tuple(inputs))
        else:
            raise InvalidArgumentError(
                "the inputs of a model must be a Tensor, a tuple or list of arguments, or a "
                f"mapping from argument names, got {type(inputs).__name__}"
            )
        if not result.tensors:
            raise InvalidArgumentError(
                f"the inputs of a model have no Tensor: {reprlib.repr(inputs)}"
            )
        if any(x.ndim and not len(x) for x in result.tensors):
            raise InvalidArgumentError(f"the inputs of a model have no examples: {result}")
        return result

    @property
    def tensors(self) -> list[Tensor]:
        """All Tensors in order."""
        leaves = tree_leaves((self.positional, dict(self.named)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int:
        """Number of examples: the length of the first Tensor that has an axis."""
        return next((len(x) for x in self.tensors if x.ndim), 1)

    def map(self, change: Callable[[Tensor], Tensor]) -> "ModelInputs":
        """Apply a function to every Tensor."""
        positional, named = tree_map_only(Tensor, change, (self.positional, dict(self.named)))
        return ModelInputs(positional, named)

    def run(self, model: nn.Module) -> Any:
        """Run a forward pass and return whatever the model returns."""
        return model(*self.positional, **self.named)

    def __str__(self) -> str:
        arguments = [*map(_text, self.positional)]
        return ", ".join(arguments + [f"{key}={_text(value)}" for key, value in self.named.items()])


ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any] | ModelInputs
"""Inputs in any form; see `ModelInputs.parse`."""


@contextmanager
def quote_model_errors(inputs: ModelInputs) -> Iterator[None]:
    """Turn errors of a model into a `ModelRunError` with its inputs and the error's text."""
    try:
        yield
    except (TensorPressError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        message = first_line(error)
        raise ModelRunError(f"the model fails on a batch of {inputs}: {message}") from error


def _text(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    return repr(value)
