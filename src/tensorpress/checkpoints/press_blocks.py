"""Pressing of a checkpoint block by block, each fitted to the outputs of the blocks before it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import digest
from tensorpress.checkpoints.press_stage import StagePress
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.safetensors_writer import open_shard_writer, write_index
from tensorpress.checkpoints.state_files import StateFiles
from tensorpress.checkpoints.streamed_model import StreamedModel
from tensorpress.checkpoints.tensor_names import Route
from tensorpress.planning.plan import Plan
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.utils.atomic_files import make_folder
from tensorpress.utils.jobs import JobFolder
from tensorpress.utils.module_tree import parameter_name
from tensorpress.utils.progress import LayerProgress

BLOCKS = "blocks"
"""The folder of completed stages and their factors."""

STATES = "states"
"""The folder of the hidden states of the dense and the pressed model before each block."""


def open_states(model: StreamedModel, folder: Path, source: str) -> StateFiles:
    """Return the files for the hidden states of the dense model.

    Parameters
    ----------
    model : StreamedModel
        The model and its calibration data.
    folder : Path
        Folder for intermediate results, until the shards are written.
    source : str
        The fingerprint of the dense checkpoint.

    Raises
    ------
    InvalidArgumentError
        If the folder has states of other calibration data.
    """
    JobFolder(folder / STATES, {"source": source, "data": digest(model.batches)})
    return StateFiles(folder / STATES / "dense", model.shapes)


def press_blocks(
    model: StreamedModel,
    plan: Plan,
    routes: Mapping[str, Route],
    dense: nn.Module,
    folder: Path,
    source: str,
) -> TensorFiles:
    """Fit the layers of a plan stage by stage, and return the files of their factors.

    When the job of a stage is written, its factors and the states after it are complete, and the
    states before it are removed: a later call continues with the next stage.

    Parameters
    ----------
    model : StreamedModel
        The model and its calibration data.
    plan : Plan
        The plan.
    routes : mapping of str to Route
        The route of each tensor in the model's state.
    dense : nn.Module
        The dense model on the meta device.
    folder : Path
        Folder for intermediate results, until the shards are written.
    source : str
        The fingerprint of the dense checkpoint.

    Returns
    -------
    TensorFiles
        The factors and biases of all layers, by their names in the pressed model's state.
    """
    subject = {"source": source, "plan": plan.id, "data": digest(model.batches)}
    jobs = JobFolder(folder / BLOCKS, subject)
    states = open_states(model, folder, source)
    work = BlockPress(model, plan, routes, dense, folder, states)
    done = jobs.results()
    with LayerProgress(len(plan.layers)) as progress:
        stages = {model.stages[number]: number for number in range(work.last + 1)}
        for name in done:
            progress.advance(len(work.layers.get(stages[name], ())))
        left = {name: (number, progress) for name, number in stages.items() if name not in done}
        for name, _ in jobs.iterate(left, work.press):
            work.forget_states(stages[name])
    return work.factors()


class BlockPress:
    """Presses the stages of a model in turn; see `press_blocks`.

    Attributes
    ----------
    layers : dict of int to list of LayerPlan
        The layers of the plan by stage number.
    last : int
        The number of the last stage with layers.
    """

    def __init__(
        self,
        model: StreamedModel,
        plan: Plan,
        routes: Mapping[str, Route],
        dense: nn.Module,
        folder: Path,
        states: StateFiles,
    ) -> None:
        self._model, self._routes, self._dense = model, routes, dense
        self._factors = folder / BLOCKS / "factors"
        self._states = states
        self._pressed = StateFiles(folder / STATES / "pressed", model.shapes)
        before = model.embedding_modules()
        self.layers: dict[int, list[LayerPlan]] = {}
        for layer in plan.layers:
            self.layers.setdefault(model.stage_of(layer.name, before), []).append(layer)
        self.last = max(self.layers)
        make_folder(self._factors)

    def press(self, number: int, progress: LayerProgress) -> str:
        """Press the layers of a stage, and write their factors and the states after it.

        Returns
        -------
        str
            The name of the file of its factors.
        """
        layers = self.layers.get(number, [])
        with self._model.open(number) as stage:
            work = StagePress(self._model, stage, self._states, self._pressed)
            work.press(layers, progress.begin)
            file = f"{number:04d}.safetensors"
            state = work.tensors()
            outputs = self._outputs(layers)
            with open_shard_writer(self._factors / file, outputs) as writer:
                for name, tensor in outputs.items():
                    writer.write(name, state[name].to(tensor.dtype))
            del state
            if number < self.last:
                places = range(len(self._model.batches))
                with torch.no_grad():
                    if number not in self._states:
                        self._states.write(number, map(work.run_dense, places))
                    self._pressed.write(number, map(work.run_pressed, places))
        progress.end(stage.name)
        return file

    def forget_states(self, number: int) -> None:
        """Remove the states before a completed stage."""
        for states in (self._states, self._pressed):
            states.remove(number - 1)

    def factors(self) -> TensorFiles:
        """Return the files of all factors."""
        files = {f"{n:04d}.safetensors": self._outputs(layers) for n, layers in self.layers.items()}
        write_index(self._factors, files)
        return TensorFiles(self._factors)

    def _outputs(self, layers: list[LayerPlan]) -> dict[str, Tensor]:
        """Return the tensors of pressed layers and their biases, on the meta device."""
        result: dict[str, Any] = {}
        for layer in layers:
            weight = parameter_name(self._dense, layer.name)
            result |= self._routes[weight].outputs
            bias = f"{weight.removesuffix('weight')}bias"
            if layer.method.form == "layer" and bias in self._routes:
                result |= self._routes[bias].outputs
        return result
