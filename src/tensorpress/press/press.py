"""Pressing: a plan and a dense model become a model of fewer parameters."""

import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from copy import deepcopy
from typing import Literal, get_args

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from tensorpress.calibrate.batches import CalibrationBatch
from tensorpress.calibrate.calibration import Calibration
from tensorpress.errors import InvalidArgumentError, TensorPressError, unknown_name
from tensorpress.planning.plan import Plan
from tensorpress.press.parallel import decompose_each
from tensorpress.press.plan_checks import check_plan, find_layer
from tensorpress.press.unpress import dense_weight, rebuild_dense
from tensorpress.reconstruct.layerwise import Reconstruct, check_reconstruction, reconstruction
from tensorpress.schemes.initialization import StartValues, build_pressed
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.schemes.pressed_layer import Pressed, layer_factors
from tensorpress.utils.executors import open_executor
from tensorpress.utils.module_tree import ModuleTree

logger = logging.getLogger("tensorpress.press")

Init = Literal["decompose", "glorot", "kaiming"]


def press(
    model: nn.Module,
    plan: Plan,
    *,
    init: Init = "decompose",
    seed: int = 0,
    calibration: Iterable[CalibrationBatch] | Calibration | None = None,
    reconstruct: Reconstruct | None = None,
    inplace: bool = False,
    processes: int = 1,
    executor: Executor | None = None,
) -> nn.Module:
    """Press the layers a plan names: replace them by chains of layers, or their weights by factors.

    One layer is pressed after the other, so that beside the dense model there is the pressed one
    and about what one layer needs. A terminal shows a bar; elsewhere the logger
    ``tensorpress.press.press`` gets one line at level INFO.

    A layer that is pressed already is pressed again, from the weight that it stands for now: ranks
    may go down in stages with training between them.

    Parameters
    ----------
    model : nn.Module
        The model; left untouched unless ``inplace``.
    plan : Plan
        From `tensorpress.plan`, or read from a file.
    init : {"decompose", "glorot", "kaiming"}
        Decompose the model's weights (for training on, or as they are), or draw factors for
        training from scratch such that the weights they stand for have that initializer's variance.
    seed : int
        Of the drawn factors, where each layer draws from its own stream, and of the positions that
        calibration looks at.
    calibration : iterable or Calibration, optional
        Batches of inputs, or of pairs (inputs, labels) whose labels are not looked at: inputs are a
        Tensor, or a tuple of them. Or mappings from names of arguments to Tensors; what a mask of
        attention says is padding is not looked at. Linear layers and convolutions that become
        chains or sums are then fitted to what the dense model responds to them, one after the other
        in the order of their calls; other layers start from their weights. A
        `tensorpress.Calibration` has what "inputs" needs but for the statistics of batch norms.
    reconstruct : {"norms", "refit", "inputs", "linear", "nonlinear"}, optional
        How, with calibration ("linear" unless given, with a Calibration "inputs"). norms: no
        factors, the statistics of batch norms only; refit: the last factor and the bias only;
        inputs: all factors, in the norm that the dense model's inputs give a weight, and the
        statistics of batch norms; linear: all factors and the bias, with the inputs that the layers
        pressed before leave; nonlinear: that through the ReLU that follows a layer, where one does.
    inplace : bool
        Press ``model`` itself instead of a copy: every dense weight is freed as soon as its factors
        are there. What can be checked is checked before the first layer is touched, but whatever
        ends the work midway, be it too little memory or Ctrl-C, leaves the layers pressed that were
        done. A model that is itself the layer to replace cannot be pressed in place:
        `tensorpress.press_layer` presses it.
    processes : int
        How many processes decompose weights, with one thread each; for models on the CPU. A script
        that asks for several must start its work under ``if __name__ == "__main__":``. Factors
        are drawn, and a core that layers share is decomposed, in one in any case.
    executor : Executor, optional
        Where weights are decomposed, in place of processes: any `concurrent.futures.Executor`,
        such as that of a Dask client or `mpi4py.futures.MPIPoolExecutor`.

    Returns
    -------
    nn.Module
        The same model with pressed layers; a layer that is used in several places stays one.

    Raises
    ------
    ModelMismatchError
        Where the plan names a layer the model does not have or another one than it expects, or one
        whose parameters other layers hold as well.
    InvalidArgumentError
        For NaN or infinite weights, hooks that would be lost or ranks that do not fit (naming the
        layer), an unknown initialization, several processes for weights that are not on the CPU, or
        what does not go together with calibration.
    TensorPressError
        If one of several processes is killed.

    Notes
    -----
    The result is a module like any other: `copy.deepcopy`, `state_dict`, ``to``, `torch.compile`
    and `torch.export` work. `torch.save` of the whole module works where no weight is rebuilt from
    factors (ada_tucker, scada_tucker, tt_weight): torch pickles no parametrizations, only their
    `state_dict`, which the dense model pressed by the same plan loads. `torch.fx.symbolic_trace`
    cannot follow a tensor train of a matrix.

    References
    ----------
    Zhong, Wei, Lin, Zhang (2019), "ADA-Tucker", Alg. 1 and sec. 4 (the initializations). Zhang,
    Zou, He, Sun (2016), "Accelerating very deep convolutional networks for classification and
    detection" (responses, asymmetric, through the ReLU).

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> pressed = press(net, plan(net, scheme="channel_svd", ranks=8))
    >>> pressed
    Sequential(
      (0): PressedLayer(
        channel_svd, ranks=(8,)
        (0): Linear(in_features=80, out_features=8, bias=False)
        (1): Linear(in_features=8, out_features=50, bias=True)
      )
    )
    >>> press(pressed, plan(net, scheme="channel_svd", ranks=4))[0].ranks
    (4,)
    """
    if init not in get_args(Init):
        raise unknown_name("initialization", init, get_args(Init))
    check_plan(model, plan)
    if inplace:
        _check_root(model, plan)
    parallel = processes != 1 or executor is not None
    _check_devices(model, plan, parallel)
    check_reconstruction(reconstruct, calibration is not None, init, parallel)
    target = model if inplace else _copy(model, plan)
    began, work, console = time.perf_counter(), _Assembly(target), Console()
    with (
        open_executor(processes, executor) as workers,
        Progress(console=console, disable=not console.is_terminal, transient=True) as bar,
    ):
        if calibration is None:
            values = _values(target, plan, init, seed, workers)
        else:
            fit = reconstruction(target, calibration, reconstruct, seed)
            values = fit.values(target, plan.layers, lambda layer: _weight(target, layer))
        try:
            for layer, own in bar.track(values, total=len(plan.layers), description="pressing"):
                work.put(layer, own)
        except TensorPressError as error:
            if not inplace or not work.done:
                raise
            left = f"{work.done} of {len(plan.layers)} layers of the model are pressed already"
            raise type(error)(f"{error} ({left})") from None
    logger.info(
        "pressed %d layers in %.1f s: %s parameters became %s",
        *(work.done, time.perf_counter() - began, f"{plan.dense_params:,}", f"{plan.params:,}"),
    )
    return work.model


def build_skeleton(model: nn.Module, plan: Plan) -> nn.Module:
    """Press a model in place without computing anything: its factors have no values yet.

    Parameters
    ----------
    model : nn.Module
        Its weights do not matter.
    plan : Plan
        What it is to hold.

    Returns
    -------
    nn.Module
        The model, or the layer in its place where the model is itself the only layer.

    Raises
    ------
    ModelMismatchError
        Where the plan names a layer the model does not have, or another one than it expects.
    InvalidArgumentError
        For ranks that do not fit.

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> build_skeleton(net, plan(net, scheme="channel_svd", ranks=4))[0][0].weight.shape
    torch.Size([4, 80])
    """
    for layer in plan.layers:
        find_layer(model, layer)
    work = _Assembly(model)
    for layer in plan.layers:
        work.put(layer, None)
    return work.model


def materialize(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Replace factors by the dense weights they stand for, for inference.

    Layers that were replaced by chains of layers stay: as they are they multiply less.

    Parameters
    ----------
    model : nn.Module
        A pressed model; left untouched unless ``inplace``.

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> dense = materialize(press(net, plan(net, scheme="tt_weight", ranks=4)))
    >>> type(dense[0].weight).__name__
    'Parameter'
    """
    target = model if inplace else deepcopy(model)
    for module in target.modules():
        if factorized_weight(module) is not None:
            rebuild_dense(module)
    return target


class _Assembly:
    """A model whose layers are pressed one by one."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.done = model, 0
        self._holders = ModuleTree(model)
        self._cores: dict[str, nn.Parameter] = {}

    def put(self, layer: LayerPlan, values: StartValues | None) -> None:
        """Press a layer: at given values, or at any."""
        old = self.model.get_submodule(layer.name)
        new = build_pressed(layer, rebuild_dense(old), values)
        self.model = self._holders.replace(old, new)
        if layer.method.shared:
            own = layer_factors(new)[0]
            core = self._cores.setdefault(layer.scheme, own)
            for part in new.modules():
                part._parameters.update({k: core for k, p in part._parameters.items() if p is own})
        self.done += 1


def _values(
    model: nn.Module, plan: Plan, init: Init, seed: int, executor: Executor | None
) -> Iterator[tuple[LayerPlan, StartValues]]:
    """Yield what every layer starts from; a layer may be replaced once it was yielded."""

    def weight_of(layer: LayerPlan) -> Tensor:
        return _weight(model, layer)

    alone = [layer for layer in plan.layers if not layer.method.shared]
    sharing: dict[str, list[LayerPlan]] = {}
    for layer in plan.layers:
        if layer.method.shared:
            sharing.setdefault(layer.scheme, []).append(layer)
    streams = {
        layer.name: torch.Generator().manual_seed(seed * 1_000_003 + place)
        for place, layer in enumerate(plan.layers)
    }
    if init == "decompose":
        yield from decompose_each(alone, weight_of, executor)
    else:
        for layer in alone:
            draw = (layer.spec, layer.ranks, weight_of(layer), init, streams[layer.name])
            yield layer, StartValues(layer.method.draw(*draw))
    for layers in sharing.values():
        method, weights = layers[0].method, list(map(weight_of, layers))
        if init == "decompose":
            factors = method.decompose_together(layers, weights)
        else:
            own = [streams[layer.name] for layer in layers]
            factors = method.draw_together(layers, weights, init, own)
        yield from zip(layers, map(StartValues, factors), strict=True)


def _weight(model: nn.Module, layer: LayerPlan) -> Tensor:
    return dense_weight(model.get_submodule(layer.name))


def _copy(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a deep copy that still holds the model's own weights where they will be replaced."""
    weights = (model.get_submodule(x.name)._parameters.get("weight") for x in plan.layers)
    return deepcopy(model, {id(weight): weight for weight in weights if weight is not None})


def _check_root(model: nn.Module, plan: Plan) -> None:
    for layer in plan.layers:
        root = model.get_submodule(layer.name) is model
        if root and (layer.method.form == "layer" or isinstance(model, Pressed)):
            raise InvalidArgumentError(
                "the model is itself the layer to be replaced, which cannot be done in place: use "
                "tensorpress.press_layer"
            )


def _check_devices(model: nn.Module, plan: Plan, parallel: bool) -> None:
    for layer in plan.layers:
        device = next(model.get_submodule(layer.name).parameters()).device
        if parallel and device.type != "cpu":
            raise InvalidArgumentError(
                f"several processes press weights on the CPU only, and layer {layer.name!r} is on "
                f"{device}: use one process, or move the model"
            )
