"""A tape of the operations of a forward pass, so that running it again computes nothing twice."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef

_SMALL = 1024  # bytes of a tensor that stays on the tape whether it is used or not


class DivergedError(BaseException):
    """A pass cannot be continued from its tape: it is to be run without one.

    No `Exception`, so that models that catch those do not catch it.
    """


class OpTape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a forward pass in pieces: each time its Python from the start, its operations only once.

    Within ``with tape:`` every operation that reaches torch's dispatcher goes on the tape. When
    `stop` was called and the pass has ended, by an exception that unwinds all of its contexts, the
    next pass is given what is on the tape in place of computing it, and goes on from there. As
    Python runs from the start, contexts, attributes and objects of the model's own are as they
    would be; what is skipped is the work of the operations, be they random or in place.

    Held are the tensors that something still refers to at the stop, which is what a suspended pass
    would hold. In place of the others there are `_Gone` without values. Nothing but the operations
    already done may read a tensor, so whatever else would need the values of one that is gone
    raises `DivergedError`, and so does a pass that calls other operations than the one before it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._records: list[tuple[Callable[..., Any], Any]] = []
        self._alive: list[_Value] = []
        self._place = 0
        self._stopped = False

    def __enter__(self) -> "OpTape":
        """Begin a pass."""
        self._place, self._stopped = 0, False
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def stop(self) -> None:
        """End the part of the pass that is on the tape, and hold what is still referred to."""
        if self._place != len(self._records):
            raise DivergedError
        self._stopped = True
        self._alive = [value for value in self._alive if value.hold()]

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        """Carry an operation out, or return what it returned before."""
        keywords = keywords or {}
        if self._stopped:
            return operation(*arguments, **keywords)
        if self._place == len(self._records):
            return self._run(operation, arguments, keywords)
        done, outputs = self._records[self._place]
        if done is not operation:
            raise DivergedError
        self._place += 1
        if isinstance(outputs, _Form):  # of the argument that was changed in place
            return outputs.give(arguments[0])
        return _map(outputs, _Value, _Value.take)

    def _run(self, operation: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Carry an operation out and put it on the tape."""
        outputs = operation(*arguments, **keywords)
        in_place = len(arguments) > 0 and outputs is arguments[0]
        saved = _Form.of(outputs) if in_place else _map(outputs, Tensor, self._save)
        self._records.append((operation, saved))
        self._place += 1
        return outputs

    def _save(self, output: Tensor) -> Any:
        """Return what stands on the tape for an output."""
        value = _Value(output)
        if not value.stays:
            self._alive.append(value)
        return value


class _Form(NamedTuple):
    """What Python can see of a tensor but its values."""

    size: torch.Size
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tensor: Tensor) -> "_Form":
        """Return that of a tensor."""
        offset = int(tensor.storage_offset())
        return _Form(tensor.size(), tensor.stride(), offset, tensor.dtype, tensor.device)

    def gone(self) -> "_Gone":
        """Return a tensor of this form without values."""
        result: _Gone = Tensor._make_wrapper_subclass(
            _Gone,
            self.size,
            strides=self.strides,
            storage_offset=self.offset,
            dtype=self.dtype,
            device=self.device,
        )
        return result

    def give(self, tensor: Tensor) -> Tensor:
        """Give a tensor this form in place."""
        if self == _Form.of(tensor):
            return tensor
        if isinstance(tensor, _Gone):
            tensor.data = self.gone()
            return tensor
        return tensor.as_strided_(self.size, self.strides, self.offset)


class _Gone(Tensor):
    """What Python can see of a tensor but its values: shape, strides, dtype, device."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        raise DivergedError


class _Value:
    """A tensor on the tape: held between passes while something refers to it, then gone."""

    __slots__ = ("_form", "_reference", "_tensor", "stays")

    def __init__(self, tensor: Tensor) -> None:
        plain = type(tensor) is Tensor and tensor.layout is torch.strided
        self.stays = not plain or tensor.numel() * tensor.element_size() <= _SMALL
        self._form = _Form.of(tensor) if plain else None
        self._tensor = tensor.detach() if self.stays else None  # another than torch is given
        self._reference = TensorWeakRef(tensor)

    def hold(self) -> bool:
        """Hold the tensor if anything does, and tell whether."""
        self._tensor = self._reference()
        return self._tensor is not None

    def take(self) -> Tensor:
        """Return the tensor as it was made, which from now on lives as long as others hold it."""
        tensor, form = self._tensor, self._form
        if tensor is None:
            assert form is not None
            return form.gone()
        if form is None or form == _Form.of(tensor):
            alias = tensor.detach()  # autograd takes no tensor twice
        else:
            alias = tensor.as_strided(form.size, form.strides, form.offset)
        if not self.stays:
            self._tensor, self._reference = None, TensorWeakRef(alias)
        return alias


def _map(outputs: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Return the outputs of an operation with a function applied to those of a type."""
    if isinstance(outputs, kind):
        return function(outputs)
    if isinstance(outputs, list | tuple):
        return type(outputs)(_map(output, kind, function) for output in outputs)
    return outputs
