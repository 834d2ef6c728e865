"""A tensor whose values are computed when they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_KNOWN = (Tensor.dtype.__get__, Tensor.device.__get__)  # type: ignore[attr-defined]


class DeferredTensor(Tensor):
    """Stands for a tensor that is made whenever something but its dtype or device is asked for.

    Networks read the dtype of a layer's weight in every forward pass, to cast what they give it.
    """

    make: Callable[[], Tensor]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do what is asked with the tensors that are stood for."""
        if func in _KNOWN:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        args, kwargs = tree_map_only(DeferredTensor, lambda one: one.make(), (args, kwargs or {}))
        return func(*args, **kwargs)


def defer(make: Callable[[], Tensor], *, like: Tensor) -> Tensor:
    """Return a tensor of the dtype and on the device of ``like``, whose values ``make`` gives.

    Examples
    --------
    >>> weight = defer(lambda: torch.full((2,), 3.0), like=torch.empty(0))
    >>> weight.dtype, weight.shape, (weight + 1).tolist()
    (torch.float32, torch.Size([2]), [4.0, 4.0])
    """
    empty = torch.empty(0, dtype=like.dtype, device=like.device)
    found = empty.as_subclass(DeferredTensor)
    found.make = make
    return found
