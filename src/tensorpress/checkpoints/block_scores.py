"""Scores of ranks by loss curvature, from one forward and one backward pass block by block."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, digest
from tensorpress.calibrate.input_moments import find_leaders
from tensorpress.calibrate.outputs import floating_tensors, random_direction
from tensorpress.calibrate.patches import can_unfold
from tensorpress.calibrate.sampled_loss import unlabelled_loss
from tensorpress.checkpoints.state_files import StateFiles
from tensorpress.checkpoints.streamed_model import Stage, StreamedModel
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.dense_model import DenseModel
from tensorpress.planning.layer_candidates import applicable_schemes
from tensorpress.planning.planner import parse_schemes
from tensorpress.planning.scores import Scored, Scores
from tensorpress.schemes.registry import scheme as scheme_named
from tensorpress.sensitivity.response_moments import ResponseMoments
from tensorpress.utils.jobs import JobFolder
from tensorpress.utils.progress import LayerProgress

SCHEME = "channel_svd"
"""The scheme whose ranks are scored."""

GRADIENTS = "gradients"
"""The folder of the gradients with respect to the hidden states before each block."""

SEED = 0


def block_scores(
    model: StreamedModel,
    layers: DenseModel,
    states: StateFiles,
    folder: Path,
    *,
    scheme: str | Sequence[str] = SCHEME,
    targets: Sequence[str] = ("*",),
    skip: Sequence[str] = (),
) -> Scores:
    r"""Score the ranks of a streamed model's layers by the loss that their lost responses cost.

    The model runs forward block by block. Then each block, from last to first, runs again and
    backpropagates. The gradients are those of the cross entropy at the next tokens of a causal
    language model, at labels drawn from the model's own probabilities of another one, or, if the
    model has no logits, along random directions of its outputs. As in
    `tensorpress.sensitivity.kfac.kfac_scores`, with C the second moment of the responses and B that
    of their gradients, rank r loses :math:`T \sum_{i>r} λ_i(B^{1/2} C B^{1/2})`.

    Parameters
    ----------
    model : StreamedModel
        The model and its calibration data.
    layers : DenseModel
        The model's layers.
    states : StateFiles
        Files for the hidden states, which pressing needs as well.
    folder : Path
        Folder for the gradients and the scores of completed stages.
    scheme, targets, skip
        As in `tensorpress.plan`. Only channel_svd is scored.

    Raises
    ------
    InvalidArgumentError
        If no layer can be scored.
    """
    names = _scored_layers(layers, scheme, targets, skip)
    jobs = JobFolder(folder / "scores", {"data": digest(model.batches), "layers": sorted(names)})
    gradients = StateFiles(folder / GRADIENTS, model.shapes)
    done = jobs.results()
    last = len(model.blocks)
    backward = list(reversed(range(1, last + 2)))
    with LayerProgress(2 * last + 1, "scoring layers", "passes through a block") as progress:
        if len(done) < len(backward):
            _run_forward(model, states, progress)
        work = _BackwardPass(model, names, states, gradients)
        left = {model.stages[n]: (n, progress) for n in backward if model.stages[n] not in done}
        for name, result in jobs.iterate(left, work.run):
            done[name] = result
            gradients.remove(model.stages.index(name))
    shutil.rmtree(folder / GRADIENTS)
    lost = {name: values for result in done.values() for name, values in result.items()}
    scores = {}
    for name in names:
        if name in lost:
            spec = layers.layers[name].spec()
            largest = len(lost[name]) - 1
            scores[name] = tuple(
                Scored(SCHEME, (rank,), lost[name][min(rank, largest)], measured=False)
                for (rank,) in scheme_named(SCHEME).candidates(spec)
            )
    if not scores:
        raise InvalidArgumentError("no layer that runs on the calibration data can be scored")
    return Scores("curvature of the loss", 0.0, scores)


def _scored_layers(
    layers: DenseModel, scheme: str | Sequence[str], targets: Sequence[str], skip: Sequence[str]
) -> list[str]:
    if SCHEME not in parse_schemes(scheme):
        raise InvalidArgumentError(
            f"with calibration, a budget is divided among ranks of {SCHEME} only, got {scheme}: "
            "pass a plan, or an allocation such as error"
        )
    selected, _ = layers.select_layers(targets, skip)
    method = scheme_named(SCHEME)
    return [
        name
        for name, layer in selected.items()
        if applicable_schemes(layer, [method])[0] and can_unfold(layer.module)
    ]


def _run_forward(model: StreamedModel, states: StateFiles, progress: LayerProgress) -> None:
    """Write the hidden states before every block and after the last."""
    for number in range(len(model.blocks) + 1):
        if number > 0:
            progress.begin(model.stages[number])
        if number in states:
            continue
        with model.open(number) as stage, torch.no_grad():
            before = (states.read(number - 1, p) if number else None for p in range(len(states)))
            states.write(number, (stage.run(p, state) for p, state in enumerate(before)))


class _BackwardPass:
    """Backpropagates through the stages of a model and scores their layers."""

    def __init__(
        self, model: StreamedModel, names: list[str], states: StateFiles, gradients: StateFiles
    ) -> None:
        self._model, self._names = model, names
        self._states, self._gradients = states, gradients

    def run(self, number: int, progress: LayerProgress) -> dict[str, list[float]]:
        """Backpropagate through a stage, and return the loss of its layers at every rank."""
        with self._model.open(number) as stage:
            progress.begin(stage.name)
            layers = self._layers(stage)
            sums = _StageSums(layers, self._leaders(stage, layers))
            before = (self._back(stage, sums, place) for place in range(len(self._states)))
            if number > 1:
                self._gradients.write(number - 1, before)
            else:  # no layer before the blocks is scored
                for _ in before:
                    pass
            examples = sum(map(len, self._model.batches))
            result = {f"{stage.prefix}{name}": x for name, x in sums.lost(examples).items()}
        progress.end(stage.name)
        return result

    def _layers(self, stage: Stage) -> dict[str, nn.Module]:
        """Return the layers of a stage to score, by their names in the stage."""
        inner = tuple(f"{block}." for block in self._model.blocks)
        if stage.prefix:
            mine = [name for name in self._names if name.startswith(stage.prefix)]
        else:
            mine = [name for name in self._names if not name.startswith(inner)]
        local = [name.removeprefix(stage.prefix) for name in mine]
        return {name: stage.module.get_submodule(name) for name in local}

    def _leaders(self, stage: Stage, layers: dict[str, nn.Module]) -> dict[str, str]:
        if not layers:
            return {}
        state = self._states.read(stage.number - 1, 0)
        with torch.no_grad():
            return find_leaders(layers, lambda: stage.run(0, state))

    def _back(self, stage: Stage, sums: "_StageSums", place: int) -> Tensor:
        """Return the gradient with respect to the state before a stage."""
        state = self._states.read(stage.number - 1, place).requires_grad_()
        batch = self._model.batches[place]
        with torch.enable_grad():
            with sums.watch(batch):
                output = stage.run(place, state)
            if stage.number == len(self._model.blocks) + 1:
                loss = _loss(self._model.module, output, batch, SEED + place)
                torch.autograd.backward(loss)
            else:
                torch.autograd.backward(output, self._gradients.read(stage.number, place))
        gradient = state.grad
        return torch.zeros_like(state) if gradient is None else gradient


def _loss(model: nn.Module, output: Any, batch: Batch, seed: int) -> Tensor:
    """Return the cross entropy of logits without labels, or a random sum of other outputs."""
    random = torch.Generator().manual_seed(seed)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        return random_direction([x.float() for x in floating_tensors(output)], random)
    return unlabelled_loss(model, batch, [logits.float()], random)


class _StageSums:
    """Second moments of inputs, which layers may share, and of gradients of responses.

    For a layer with more outputs than inputs, gradients g are replaced by Wᵀg, as in
    `ResponseMoments`.
    """

    def __init__(self, layers: Mapping[str, nn.Module], leaders: Mapping[str, str]) -> None:
        self._layers = {name: layers[name] for name in leaders}
        self._leaders = leaders
        self._inputs: dict[str, ResponseMoments] = {}
        self._gradients: dict[str, Tensor] = {}

    @contextmanager
    def watch(self, batch: Batch) -> Iterator[None]:
        """Add the inputs and gradients of a forward pass in this block and its backward pass."""
        with ExitStack() as stack:
            for name, layer in self._layers.items():
                hook = layer.register_forward_hook(self._make_hook(name, batch), with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def _make_hook(self, name: str, batch: Batch) -> Callable[..., None]:
        layer = self._layers[name]

        def forward(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            if self._leaders[name] == name:
                with torch.no_grad(), torch._C._DisableAutocast():
                    self._add_inputs(name, _rows(batch, layer, (*args, *kwargs.values())[0]))
            if output.requires_grad:
                output.register_hook(backward)  # type: ignore[no-untyped-call]

        @torch.no_grad()
        def backward(gradient: Tensor) -> None:
            slopes = _rows(batch, layer, gradient)
            weight = _matrix(layer)
            if weight.shape[0] > weight.shape[1]:
                slopes = slopes @ weight
            if name not in self._gradients:
                self._gradients[name] = torch.zeros(slopes.shape[1], slopes.shape[1])
            self._gradients[name].addmm_(slopes.mT, slopes)

        return forward

    def _add_inputs(self, name: str, x: Tensor) -> None:
        if name not in self._inputs:
            self._inputs[name] = ResponseMoments.zeros(1, x.shape[1], centred=False)
        self._inputs[name].add_values(x[:, None])

    def lost(self, examples: int) -> dict[str, list[float]]:
        """Return the loss per example of each layer at ranks 0, 1, …."""
        result = {}
        for name, gradients in self._gradients.items():
            layer, inputs = self._layers[name], self._inputs[self._leaders[name]]
            values, mean, weight = inputs.values, inputs.mean, _matrix(layer).double()
            if weight.shape[0] <= weight.shape[1]:  # E y yᵀ = W E[x xᵀ] Wᵀ
                values, mean = weight @ values @ weight.mT, mean @ weight.mT
            centred = layer._parameters.get("bias") is not None
            moments = ResponseMoments(
                *(values, mean, gradients[None].double(), centred, inputs.rows, examples)
            )
            if not bool(values.isfinite().all() and gradients.isfinite().all()):
                raise InvalidArgumentError(
                    f"layer {name!r}: its inputs or gradients are not finite"
                )
            result[name] = moments.lost().tolist()
        return result


def _rows(batch: Batch, layer: nn.Module, x: Tensor) -> Tensor:
    """Return values without padding, of shape (positions, channels), in float32."""
    x = batch.unpadded(layer, x.detach())
    return x.reshape(-1, x.shape[-1]).float()


def _matrix(layer: nn.Module) -> Tensor:
    """Return the weight of a Linear or GPT-2's Conv1D as (outputs, inputs), in float32."""
    weight = layer.get_parameter("weight").detach().float()
    return weight if isinstance(layer, nn.Linear) else weight.mT
