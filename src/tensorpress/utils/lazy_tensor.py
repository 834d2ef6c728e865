"""A tensor whose values are computed when they are used."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tensorpress.errors import InvalidArgumentError

_KNOWN = (Tensor.dtype.__get__, Tensor.device.__get__)  # type: ignore[attr-defined]

_IN_PLACE_OPERATORS = [f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "div", "pow")]


class LazyTensor(Tensor):
    """A placeholder that computes its tensor when anything but its dtype or device is used.

    Networks read the dtype of a layer's weight in every forward pass, to cast inputs, which should
    cost nothing. Changes in place would be lost; they raise the error ``refusal`` if it is not
    empty.
    """

    make: Callable[[], Tensor]
    refusal: str = ""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Apply a function to the computed tensors instead of the placeholders."""
        if func in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        kwargs = kwargs or {}
        changed = args[0] if args else next(iter(kwargs.values()), None)
        if _changes(func.__name__) and isinstance(changed, LazyTensor) and changed.refusal:
            raise InvalidArgumentError(changed.refusal)
        args, kwargs = tree_map_only(LazyTensor, lambda lazy: lazy.make(), (args, kwargs))
        return func(*args, **kwargs)


def defer(make: Callable[[], Tensor], *, like: Tensor, refusal: str = "") -> Tensor:
    """Return a tensor with the dtype and device of ``like`` whose values ``make`` computes.

    Parameters
    ----------
    make : callable
        Function that returns the tensor.
    like : Tensor
        Tensor with the dtype and device.
    refusal : str
        Message of the error for changes in place, if they would be lost.

    Examples
    --------
    >>> weight = defer(lambda: torch.full((2,), 3.0), like=torch.empty(0))
    >>> weight.dtype, weight.shape, (weight + 1).tolist()
    (torch.float32, torch.Size([2]), [4.0, 4.0])
    """
    empty = torch.empty(0, dtype=like.dtype, device=like.device)
    result = empty.as_subclass(LazyTensor)
    result.make, result.refusal = make, refusal
    return result


def _changes(name: str) -> bool:
    """Return whether a Tensor method with this name changes its tensor in place."""
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in ("__set__", "__setitem__") or name in _IN_PLACE_OPERATORS
