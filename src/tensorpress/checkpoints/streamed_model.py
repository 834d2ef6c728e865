"""A model that runs block by block on calibration batches, with one block in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from tensorpress.calibrate.batches import Batch, run_model
from tensorpress.checkpoints.blocks import INSTEAD, find_blocks
from tensorpress.checkpoints.meta_model import tied_names
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.errors import InvalidArgumentError, ModelRunError
from tensorpress.utils.tensor_hash import fingerprint

HALF = (torch.bfloat16, torch.float16)


class _Stopped(Exception):  # noqa: N818
    """Ends a forward pass early."""


@dataclass(frozen=True)
class _Call:
    """The arguments of a block; None is the place of the hidden state."""

    positional: tuple[Any, ...]
    named: Mapping[str, Any]

    def run(self, block: nn.Module, state: Tensor) -> Any:
        if self.positional:
            return block(state, *self.positional[1:], **self.named)
        first, *_ = self.named
        return block(**{**self.named, first: state})

    @staticmethod
    def split(positional: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, "_Call"]:
        """Return the hidden state, which is the first argument, and the call without it."""
        if positional:
            return positional[0], _Call((None, *positional[1:]), named)
        first, *_ = named
        return named[first], _Call((), {**named, first: None})


@dataclass(frozen=True)
class Stage:
    """A part of the model in memory: a block, or everything before or after the blocks.

    Attributes
    ----------
    name : str
        "embedding", the name of the block, or "head".
    number : int
        0 for the embedding, then the blocks, and the head last.
    module : nn.Module
        The module with the layers of the stage.
    prefix : str
        Prefix of the layers' names in ``module`` that gives their names in the model.
    run : callable
        Function of the index of a batch and the hidden state before the stage, which the embedding
        ignores. It returns the hidden state after the stage; the head returns the model's output.
    load : callable
        Function that loads the values of a module. Modules outside the blocks also load them when
        they are called.
    """

    name: str
    number: int
    module: nn.Module
    prefix: str
    run: Callable[[int, Tensor | None], Any]
    load: Callable[[nn.Module], None] = lambda module: None


class StreamedModel:
    """A model on the meta device that has values for one stage at a time.

    Matrix products are computed in bfloat16 if the blocks are stored in half precision; hidden
    states are float32.

    Parameters
    ----------
    model : nn.Module
        The model on the meta device; buffers that are not in the files have values.
    files : TensorFiles
        The model's checkpoint.
    stored : mapping of str to str
        The name in the files of each tensor in the model's state, by its first name.
    batches : sequence of Batch
        Calibration data.

    Attributes
    ----------
    module : nn.Module
        The model, whose weights are in memory only while a stage of it is open.
    blocks : list of str
        The names of the blocks.
    shapes : list of torch.Size
        The shape of the hidden states for each batch.

    Raises
    ------
    InvalidArgumentError
        If the model is not a chain of blocks that pass on a single hidden state.
    """

    def __init__(
        self,
        model: nn.Module,
        files: TensorFiles,
        stored: Mapping[str, str],
        batches: Sequence[Batch],
    ) -> None:
        self.blocks, self.batches, self._files = find_blocks(model), batches, files
        self.module = model.eval()
        _empty_buffers(model)
        for part in ("config", "generation_config"):
            if hasattr(getattr(model, part, None), "use_cache"):
                getattr(model, part).use_cache = False
        groups = tied_names(model)
        self._stored = {name: stored[first] for first, names in groups.items() for name in names}
        self._modules = [model.get_submodule(name) for name in self.blocks]
        first = (name for name in self._stored if name.startswith(f"{self.blocks[0]}."))
        self._half = any(files.tensors[self._stored[name]].dtype in HALF for name in first)
        self._kind = type(model).__name__
        self._rest: Callable[[Tensor], Any] = lambda state: state
        self._learn_calls()

    @property
    def stages(self) -> list[str]:
        """The names of the stages in order."""
        return ["embedding", *self.blocks, "head"]

    def stage_of(self, layer: str, called_before: set[str]) -> int:
        """Return the number of the stage of a layer.

        Parameters
        ----------
        layer : str
            The name of the layer.
        called_before : set of str
            The modules that are called before the blocks, from `embedding_modules`.
        """
        for number, block in enumerate(self.blocks, 1):
            if layer.startswith(f"{block}."):
                return number
        return 0 if layer in called_before else len(self.blocks) + 1

    def embedding_modules(self) -> set[str]:
        """Return the names of the modules that are called before the blocks."""
        called: set[str] = set()
        with self.open(0) as stage, ExitStack() as stack:
            for name, module in self._outer_modules():
                hook = module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
                stack.callback(hook.remove)
            stage.run(0, None)
        return called

    @contextmanager
    def open(self, number: int) -> Iterator[Stage]:
        """Yield a stage with its weights in memory."""
        name = self.stages[number]
        if 0 < number <= len(self.blocks):
            block = self._load_block(number - 1)

            def run(place: int, state: Tensor | None) -> Tensor:
                assert state is not None
                return self._run_block(block, number - 1, place, state)

            yield Stage(name, number, block, f"{name}.", run)
            return
        with self._load_outer() as load:
            run_outer = self._embed if number == 0 else self._run_head
            yield Stage(name, number, self.module, "", run_outer, load)

    def _learn_calls(self) -> None:
        """Record the arguments of every block, in passes whose blocks return their inputs."""
        unique: dict[str, Tensor] = {}

        def shared(tensor: Tensor) -> Tensor:
            key = f"{tensor.shape} {tensor.dtype} {fingerprint([tensor])}"
            return unique.setdefault(key, tensor.detach().clone())

        self._calls: list[list[_Call]] = []
        self.shapes: list[torch.Size] = []
        with self._load_outer():
            for place in range(len(self.batches)):
                if place == 0:
                    state, calls = self._trace(place, stop=0)
                    self._learn_output(calls[0], state)
                state, calls = self._trace(place, stop=len(self.blocks) - 1)
                changed = [
                    tree_map_only(Tensor, shared, (call.positional, dict(call.named)))
                    for call in calls
                ]
                self._calls.append([_Call(*arguments) for arguments in changed])
                self.shapes.append(state.shape)

    def _learn_output(self, call: _Call, state: Tensor) -> None:
        """Record what a block returns besides the hidden state."""
        block = self._load_block(0)
        with torch.no_grad(), self._precision():
            output = call.run(block, state.float())
        if isinstance(output, Tensor):
            return
        if not isinstance(output, tuple) or not isinstance(output[0], Tensor):
            raise self._error(f"a block returns {type(output).__name__}")
        others = output[1:]
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(others)):
            raise self._error("a block returns more than one tensor")
        self._rest = lambda state: (state, *others)

    def _trace(self, place: int, stop: int) -> tuple[Tensor, list[_Call]]:
        """Return the hidden state before the blocks, and the arguments of blocks up to ``stop``."""
        states: list[Tensor] = []
        calls: list[_Call] = []

        def receive(number: int, state: Any, call: _Call) -> Any:
            self._check_chain(number, state, states)
            states.append(state)
            calls.append(call)
            if number == stop:
                raise _Stopped
            return self._rest(state)

        try:
            with torch.no_grad():
                self._run_outer(place, receive)
        except ModelRunError as error:
            raise InvalidArgumentError(f"calibration batch {place}: {error}") from error
        if len(calls) <= stop:
            raise self._error(f"block {self.blocks[len(calls)]!r} is not called")
        return states[0].float(), calls

    def _check_chain(self, number: int, state: Any, states: list[Tensor]) -> None:
        if number != len(states) or not isinstance(state, Tensor) or not state.is_floating_point():
            raise self._error(f"block {self.blocks[number]!r} does not follow the block before it")
        if states and state is not states[0]:
            raise self._error(
                f"block {self.blocks[number]!r} does not receive the output of the block before it"
            )

    def _embed(self, place: int, _: Tensor | None) -> Tensor:
        states: list[Tensor] = []

        def receive(number: int, state: Any, call: _Call) -> Any:
            states.append(state)
            raise _Stopped

        self._run_outer(place, receive)
        return states[0].float()

    def _run_head(self, place: int, state: Tensor | None) -> Any:
        assert state is not None

        def receive(number: int, before: Any, call: _Call) -> Any:
            return self._rest(before if number else state)

        return self._run_outer(place, receive)

    def _run_outer(self, place: int, receive: Callable[[int, Any, _Call], Any]) -> Any:
        """Run the model with a function instead of its blocks, which may end the pass."""

        def make_stub(number: int) -> Callable[..., Any]:
            def stub(*positional: Any, **named: Any) -> Any:
                return receive(number, *_Call.split(positional, named))

            return stub

        with ExitStack() as stack:
            for number, block in enumerate(self._modules):
                block.forward = make_stub(number)
                stack.callback(block.__dict__.pop, "forward")
            stack.enter_context(self._precision())
            try:
                return run_model(self.module, self.batches[place])
            except _Stopped:
                return None

    def _run_block(self, block: nn.Module, number: int, place: int, state: Tensor) -> Tensor:
        with self._precision():
            output = self._calls[place][number].run(block, state)
        result: Tensor = output if isinstance(output, Tensor) else output[0]
        return result.float()

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._half)

    def _load_block(self, number: int) -> nn.Module:
        """Return a block with values; vectors in half precision become float32."""
        block = deepcopy(self._modules[number])
        values = {
            name: self._read(f"{self.blocks[number]}.{name}")
            for name in block.state_dict(keep_vars=True)
        }
        block.load_state_dict(values, assign=True)
        return block.requires_grad_(False)

    @contextmanager
    def _load_outer(self) -> Iterator[Callable[[nn.Module], None]]:
        """Load the tensors of modules outside the blocks when they are called, or on request."""
        names = {id(module): name for name, module in self._outer_modules()}
        empty: list[tuple[dict[str, Any], str, Tensor]] = []

        def load(module: nn.Module, _: Any = None) -> None:
            name = names[id(module)]
            stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for tensors in stores:
                for key, tensor in tensors.items():
                    if tensor is not None and tensor.is_meta:
                        empty.append((tensors, key, tensor))
                        values = self._read(f"{name}.{key}" if name else key)
                        if tensors is module._parameters:
                            values = nn.Parameter(values, requires_grad=False)
                        tensors[key] = values

        with ExitStack() as stack:
            for _, module in self._outer_modules():
                stack.callback(module.register_forward_pre_hook(load).remove)
            try:
                yield load
            finally:
                for tensors, key, tensor in empty:
                    tensors[key] = tensor

    def _outer_modules(self) -> Iterator[tuple[str, nn.Module]]:
        inner = {id(module) for block in self._modules for module in block.modules()}
        for name, module in self.module.named_modules():
            if id(module) not in inner:
                yield name, module

    def _read(self, name: str) -> Tensor:
        values = self._files.read(self._stored[name])
        return values.float() if values.ndim < 2 and values.dtype in HALF else values

    def _error(self, reason: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._kind}: {reason}, so {INSTEAD}")


def _empty_buffers(model: nn.Module) -> None:
    """Move the buffers in a model's state, which are in its files, to the meta device."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, nn.Parameter):
            module, _, key = name.rpartition(".")
            model.get_submodule(module)._buffers[key] = tensor.to("meta")
