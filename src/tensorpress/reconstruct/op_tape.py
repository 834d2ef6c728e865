"""A tape of a forward pass: running the pass again repeats no computation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import TensorWeakRef

_SMALL = 1024  # bytes up to which a tensor always stays on the tape


class DivergedError(BaseException):
    """A pass cannot be continued from its tape and has to be run without one.

    This is no `Exception`, so that models that catch those do not catch it.
    """


class OpTape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a forward pass in pieces: each reruns the Python code from the start, but no operation.

    Within ``with tape:`` every operation that reaches torch's dispatcher is recorded, and every
    module whose forward is called through `call`. After `stop`, and an exception that unwinds the
    pass, the next pass replays the recorded outputs and continues from there. Python runs from the
    start, so contexts, attributes and objects of the model are in their usual state; only the work
    of the operations is skipped, random and in-place operations included.

    A module that has returned is not run again at all if only its outputs are still referred to.
    So each piece runs the Python code of one block of the model, not of all blocks.

    Tensors that something still refers to at the stop stay in memory. The others are replaced by
    `_Gone`, without values: only recorded operations may take them. Anything else that needs their
    values raises `DivergedError`, as does a pass whose operations differ from the last one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root = _Call("")
        self._open = [_Frame(self._root.records)]
        self._stopped = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import torch's compiler and ask it at every operation

    def __enter__(self) -> "OpTape":
        """Begin a pass."""
        self._open, self._stopped = [_Frame(self._root.records)], False
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def stop(self) -> None:
        """End the recorded part of the pass, and keep the tensors that are still referred to."""
        if not all(frame.at_end() for frame in self._open):
            raise DivergedError
        self._stopped = True
        self._root.settle()

    def call(
        self,
        name: str,
        forward: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
    ) -> Any:
        """Return the outputs of a module, played back if it need not run again."""
        if self._stopped:
            return forward(*arguments, **keywords)
        frame = self._open[-1]
        if frame.at_end():
            frame.records.append(_Call(name))
        call = frame.next()
        if not isinstance(call, _Call) or call.name != name:
            raise DivergedError
        if call.skipped:
            with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
                return _map(call.outputs, _Value, _Value.take)
        self._open.append(_Frame(call.records))
        try:
            outputs = forward(*arguments, **keywords)
        except Exception as error:  # which the model may catch
            if self._stopped:
                raise
            raise DivergedError from error
        if not self._stopped:
            if not self._open.pop().at_end():
                raise DivergedError
            with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
                call.finish(outputs, (*arguments, *keywords.values()))
        return outputs

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, or return its recorded outputs."""
        keywords = keywords or {}
        if self._stopped:
            return operation(*arguments, **keywords)
        frame = self._open[-1]
        if frame.at_end():
            frame.place += 1
            first: Any = arguments[0] if arguments else None
            before = _Form.of(first) if isinstance(first, Tensor) else None
            outputs = operation(*arguments, **keywords)
            if before is not None and outputs is first:
                saved: Any = _Change(_Form.of(outputs), before)
            else:
                saved = _map(outputs, Tensor, _Value)
            frame.records.append(_Operation(operation, saved))
            return outputs
        record = frame.next()
        if not isinstance(record, _Operation) or record.operation is not operation:
            raise DivergedError
        if isinstance(record.outputs, _Change):
            return record.outputs.after.give(arguments[0])
        return _map(record.outputs, _Value, _Value.take)


class _Operation(NamedTuple):
    """A recorded operation and its outputs."""

    operation: Callable[..., Any]
    outputs: Any


class _Call:
    """A recorded call of a module: the operations and calls in it, and its outputs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.records: list[_Operation | _Call] = []
        self.outputs: Any = None
        self.skipped = False
        self._can_skip = False

    def finish(self, outputs: Any, arguments: tuple[Any, ...]) -> None:
        """Record the outputs of the module."""
        tensors = list(_leaves(outputs, Tensor))
        inputs = {id(argument) for argument in arguments}
        self._can_skip = bool(tensors and self.records) and _is_plain(outputs)
        self._can_skip &= not any(id(tensor) in inputs for tensor in tensors)
        if self._can_skip:
            self.outputs = _map(outputs, Tensor, _Value)

    def settle(self) -> None:
        """Keep the tensors that are still referred to, and decide which modules are skipped."""
        if self._can_skip and not self.skipped and self._is_closed():
            self.skipped, self.records = True, []
        for value in _leaves(self.outputs, _Value):
            value.hold()
        for record in self.records:
            if isinstance(record, _Call):
                record.settle()
            else:
                for value in _leaves(record.outputs, _Value):
                    value.hold()

    def _is_closed(self) -> bool:
        """Tell whether only the outputs of the call are still referred to."""
        outputs = {id(value.tensor()) for value in _leaves(self.outputs, _Value)}  # None as well
        outputs.add(id(None))
        return all(
            # A tensor whose form changed may come from outside.
            value.after == value.before
            if isinstance(value, _Change)
            else id(value.tensor()) in outputs
            for value in self._inside()
        )

    def _inside(self) -> Iterator["_Value | _Change"]:
        """Yield the outputs of the operations and modules inside."""
        for record in self.records:
            yield from _leaves(record.outputs, (_Value, _Change))
            if isinstance(record, _Call):
                yield from record._inside()


class _Frame:
    """A running call, and the place in its records."""

    __slots__ = ("place", "records")

    def __init__(self, records: list[_Operation | _Call]) -> None:
        self.records, self.place = records, 0

    def at_end(self) -> bool:
        """Tell whether all records were played back."""
        return self.place == len(self.records)

    def next(self) -> _Operation | _Call:
        """Return the record at this place, and advance."""
        self.place += 1
        return self.records[self.place - 1]


class _Form(NamedTuple):
    """All that Python can see of a tensor except its values."""

    size: torch.Size
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tensor: Tensor) -> "_Form":
        """Return the form of a tensor."""
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


@dataclass(frozen=True)
class _Change:
    """The form of an argument before and after an in-place operation."""

    after: _Form
    before: _Form


class _Gone(Tensor):
    """A tensor without values, of some shape, strides, dtype and device."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        raise DivergedError


class _Value:
    """A tensor on the tape: between passes it is held only while something refers to it."""

    __slots__ = ("_form", "_reference", "_stays", "_tensor")

    def __init__(self, tensor: Tensor) -> None:
        plain = type(tensor) is Tensor and tensor.layout is torch.strided
        self._stays = not plain or tensor.numel() * tensor.element_size() <= _SMALL
        self._form = _Form.of(tensor) if plain else None
        self._tensor = tensor.detach() if self._stays else None  # not the object itself
        self._reference = TensorWeakRef(tensor)

    def tensor(self) -> Tensor | None:
        """Return the tensor of the last pass, if anything refers to it."""
        tensor: Tensor | None = self._reference()
        return tensor

    def hold(self) -> None:
        """Keep the tensor in memory until the next pass, if anything refers to it."""
        if not self._stays:
            self._tensor = self._reference()

    def take(self) -> Tensor:
        """Return the tensor as it was made; from now on its users keep it alive."""
        tensor, form = self._tensor, self._form
        if tensor is None:
            assert form is not None
            return form.gone()
        if form is None or form == _Form.of(tensor):
            alias = tensor.detach()  # autograd takes no tensor twice
        else:
            alias = tensor.as_strided(form.size, form.strides, form.offset)
        self._reference = TensorWeakRef(alias)
        if not self._stays:
            self._tensor = None
        return alias


def _is_plain(outputs: Any) -> bool:
    """Tell whether outputs are tensors, None, or lists and tuples of those."""
    if type(outputs) in (list, tuple):
        return all(map(_is_plain, outputs))
    return outputs is None or isinstance(outputs, Tensor)


def _leaves(outputs: Any, kind: type | tuple[type, ...]) -> Iterator[Any]:
    """Yield the outputs of a type."""
    if isinstance(outputs, kind):
        yield outputs
    elif isinstance(outputs, list | tuple):
        for output in outputs:
            yield from _leaves(output, kind)


def _map(outputs: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Return outputs with a function applied to those of a type."""
    if isinstance(outputs, kind):
        return function(outputs)
    if isinstance(outputs, list | tuple):
        return type(outputs)(_map(output, kind, function) for output in outputs)
    return outputs
