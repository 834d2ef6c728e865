"""`press`: layers become chains of smaller layers, or their weights products of factors."""

import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import nullcontext
from functools import partial
from typing import Literal, get_args

import torch
from rich.progress import Progress
from torch import Tensor, nn

from tensorpress.calibrate.batches import CalibrationBatch
from tensorpress.calibrate.calibration import Calibration
from tensorpress.calibrate.loss_curvature import LossCurvature
from tensorpress.calibrate.unrolled import unrolled_inplace
from tensorpress.errors import InvalidArgumentError, TensorPressError, unknown_name
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs
from tensorpress.planning.plan import Plan
from tensorpress.press.parallel import decompose_each
from tensorpress.press.plan_checks import check_plan, find_layer
from tensorpress.press.trial_run import check_runs
from tensorpress.press.unpress import dense_weight, rebuild_dense
from tensorpress.reconstruct.layerwise import Reconstruct, check_reconstruction, reconstruction
from tensorpress.schemes.folding import fold, fold_inplace
from tensorpress.schemes.initialization import StartValues, build_pressed
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.parametrization import factorized_weights
from tensorpress.schemes.pressed_layer import Pressed, layer_factors
from tensorpress.utils.executors import open_executor
from tensorpress.utils.module_tree import ModuleTree, copy_model, locate_weight, unwrap
from tensorpress.utils.progress import show_progress

logger = logging.getLogger("tensorpress.press")

Init = Literal["decompose", "glorot", "kaiming"]


def press(
    model: nn.Module,
    plan: Plan,
    *,
    init: Init = "decompose",
    seed: int = 0,
    example_inputs: ExampleInputs | None = None,
    calibration: Iterable[CalibrationBatch] | Calibration | LossCurvature | None = None,
    reconstruct: Reconstruct | None = None,
    inplace: bool = False,
    processes: int = 1,
    executor: Executor | None = None,
) -> nn.Module:
    """Press the layers of a plan: replace them by chains of layers, or their weights by factors.

    Weight norm, spectral norm and pruning masks are first folded into the weights. Layers are then
    pressed one by one, so that memory holds the dense model, the pressed model and about one layer
    more. A terminal shows a progress bar; elsewhere the logger ``tensorpress.press`` writes one
    line at level INFO.

    A pressed layer can be pressed again: it starts from the composed weight. So ranks can be
    lowered in stages, with training in between.

    Parameters
    ----------
    model : nn.Module
        The model, unchanged unless ``inplace``. If it is compiled or wrapped in DataParallel, the
        model inside is pressed.
    plan : Plan
        The plan, from `tensorpress.plan` or a file.
    init : {"decompose", "glorot", "kaiming"}
        Decompose the model's weights, or draw random factors for training from scratch, scaled so
        that their products have the variance of that initializer.
    seed : int
        Seed of random factors (with one random stream per layer) and of the positions that
        calibration samples.
    example_inputs : Tensor, sequence or mapping, optional
        Arguments of one forward pass, as in `tensorpress.plan`. The pressed model runs once on
        them before it is returned. Defaults to the first calibration batch.
    calibration : iterable, Calibration or LossCurvature, optional
        Data to fit the factors to. An iterable has batches of inputs (a Tensor or a possibly nested
        tuple of arguments), of pairs (inputs, labels) whose labels are ignored, or of mappings from
        argument names; padding is ignored if there is an attention mask. Linear layers and
        convolutions that become chains or sums are then fitted to the responses of the dense model,
        in the order in which they are called; other layers start from their weights. A
        `tensorpress.Calibration` has all that "inputs" needs except the batch norm statistics. With
        a `tensorpress.LossCurvature`, Linear layers get the two factors that raise the loss of a
        classifier or language model least.
    reconstruct : {"norms", "refit", "inputs", "linear", "nonlinear"}, optional
        What is fitted to the calibration data: by default "linear", or "inputs" for a Calibration.
        norms: only the batch norm statistics; refit: only the last factor and the bias; inputs: all
        factors, in the norm that the dense model's inputs define, and the batch norm statistics;
        linear: all factors and the bias, with inputs from the layers that are already pressed;
        nonlinear: the same through the ReLU that follows a layer, if any.
    inplace : bool
        Press ``model`` itself instead of a copy; every dense weight is freed as soon as its layer
        is pressed. The plan is checked first, but an error or Ctrl-C during pressing leaves some
        layers pressed: the error message says how many, and after Ctrl-C the log says which. A
        model that is itself the layer to replace cannot be pressed in place: use
        `tensorpress.press_layer`.
    processes : int
        Number of processes that decompose weights, with one thread each; for models on the CPU. A
        script that asks for several must start under ``if __name__ == "__main__":``. Random factors
        and cores that layers share are computed in this process.
    executor : Executor, optional
        Workers to use instead of processes: any `concurrent.futures.Executor`, such as that of a
        Dask client or `mpi4py.futures.MPIPoolExecutor`.

    Returns
    -------
    nn.Module
        The model with pressed layers. A layer that is used in several places is still one layer.

    Raises
    ------
    ModelMismatchError
        If the model lacks a layer of the plan, has a different one, or shares its parameters with
        another layer.
    InvalidArgumentError
        If weights are NaN or infinite, hooks would be lost or ranks do not fit (the message names
        the layer); for an unknown initialization, several processes with weights that are not on
        the CPU, or options that cannot be combined with calibration; or if the pressed model fails
        on the example inputs or the first batch.
    TensorPressError
        If one of several processes is killed.

    Notes
    -----
    `copy.deepcopy`, `state_dict`, ``to``, `torch.compile` and `torch.export` work on the result.
    `torch.save` of the whole module works unless a weight is rebuilt from factors (ada_tucker,
    scada_tucker, tt_weight), because torch does not pickle parametrizations: save the `state_dict`
    instead, and load it into the dense model pressed by the same plan. `torch.jit.script` supports
    chains of layers, but not tensor trains of matrices or weights that are rebuilt;
    `torch.jit.trace` supports these too.

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
    if not isinstance(plan, Plan):
        raise InvalidArgumentError(
            f"expected a Plan, got {type(plan).__name__} {plan!r}: make one by "
            'tensorpress.plan(model, budget="macs=50%"), or call tensorpress.compress'
        )
    model = unwrap(model)
    folded = fold(model)
    check_plan(folded, plan)
    if inplace:
        _check_root(folded, plan)
    parallel = processes != 1 or executor is not None
    _check_devices(folded, plan, parallel)
    check_reconstruction(reconstruct, calibration is not None, init, parallel)
    inputs = None if example_inputs is None else ModelInputs.parse(example_inputs)
    if inplace:
        fold_inplace(model)
    target = model if inplace else _copy(folded, plan)
    del folded  # its dense weights, which are freed one by one
    start, builder = time.perf_counter(), _ModelBuilder(target)
    with (
        open_executor(processes, executor) as workers,
        Progress(disable=not show_progress(), transient=True) as bar,
        nullcontext() if calibration is None else unrolled_inplace(target),
    ):
        if calibration is None:
            start_values = _make_start_values(target, plan, init, seed, workers)
        else:
            fit = reconstruction(target, calibration, reconstruct, seed)
            if inputs is None and fit.batches:
                inputs = fit.batches[0].arguments
            start_values = fit.values(target, plan.layers, partial(_layer_weight, target))
        total = len(plan.layers)
        try:
            for layer, values in bar.track(start_values, total=total, description="pressing"):
                builder.press(layer, values)
        except BaseException as error:
            if not inplace or not builder.done:
                raise
            done = f"{len(builder.done)} of the {total} layers are already pressed"
            if isinstance(error, TensorPressError):
                raise type(error)(f"{error} ({done})") from None
            logger.warning("interrupted: %s, %s", done, ", ".join(builder.done))
            raise
    if inputs is not None:
        check_runs(builder.model, inputs)
    logger.info(
        "pressed %d layers in %.1f s: from %s to %s parameters",
        *(total, time.perf_counter() - start, f"{plan.dense_params:,}", f"{plan.params:,}"),
    )
    return builder.model


def build_skeleton(model: nn.Module, plan: Plan) -> nn.Module:
    """Press a model in place with factors whose values are still to be loaded.

    Parameters
    ----------
    model : nn.Module
        A dense model; its values are not read.
    plan : Plan
        The plan.

    Returns
    -------
    nn.Module
        The model, or the pressed layer if the model is itself the layer.

    Raises
    ------
    ModelMismatchError
        If the model lacks a layer of the plan, or has a different one.
    InvalidArgumentError
        If ranks do not fit.

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> build_skeleton(net, plan(net, scheme="channel_svd", ranks=4))[0][0].weight.shape
    torch.Size([4, 80])
    """
    for layer in plan.layers:
        find_layer(model, layer)
    builder = _ModelBuilder(model)
    for layer in plan.layers:
        builder.press(layer, None)
    return builder.model


def materialize(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Store the dense weights that layers rebuild from their factors, for inference.

    Chains of layers do not change, because they need fewer multiplications than dense layers.

    Parameters
    ----------
    model : nn.Module
        A pressed model, unchanged unless ``inplace``.
    inplace : bool
        Change ``model`` itself instead of a copy.

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> dense = materialize(press(net, plan(net, scheme="tt_weight", ranks=4)))
    >>> type(dense[0].weight).__name__
    'Parameter'
    """
    target = model if inplace else copy_model(model)
    for module in target.modules():
        for key in factorized_weights(module):
            rebuild_dense(module, key)
    return target


class _ModelBuilder:
    """A model whose layers are pressed one by one."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.done: list[str] = []
        self._tree = ModuleTree(model)
        self._cores: dict[str, nn.Parameter] = {}

    def press(self, layer: LayerPlan, values: StartValues | None) -> None:
        """Press a layer; without start values its factors stay uninitialized."""
        module, key = locate_weight(self.model, layer.name)
        pressed = build_pressed(layer, rebuild_dense(module, key), values, key)
        self.model = self._tree.replace(module, pressed)
        if layer.method.shared:
            first = layer_factors(pressed, key)[0]
            core = self._cores.setdefault(layer.scheme, first)
            for part in pressed.modules():
                for name, parameter in part._parameters.items():
                    if parameter is first:
                        part._parameters[name] = core
        self.done.append(layer.name)


def _make_start_values(
    model: nn.Module, plan: Plan, init: Init, seed: int, executor: Executor | None
) -> Iterator[tuple[LayerPlan, StartValues]]:
    """Yield the start values of every layer; a yielded layer may then be replaced."""
    weight = partial(_layer_weight, model)
    separate = [layer for layer in plan.layers if not layer.method.shared]
    groups: dict[str, list[LayerPlan]] = {}
    for layer in plan.layers:
        if layer.method.shared:
            groups.setdefault(layer.scheme, []).append(layer)
    streams = {
        layer.name: torch.Generator().manual_seed(seed * 1_000_003 + place)
        for place, layer in enumerate(plan.layers)
    }
    if init == "decompose":
        yield from decompose_each(separate, weight, executor)
    else:
        for layer in separate:
            draw = (layer.spec, layer.ranks, weight(layer), init, streams[layer.name])
            yield layer, StartValues(layer.method.draw(*draw))
    for layers in groups.values():
        method, weights = layers[0].method, list(map(weight, layers))
        if init == "decompose":
            factors = method.decompose_together(layers, weights)
        else:
            generators = [streams[layer.name] for layer in layers]
            factors = method.draw_together(layers, weights, init, generators)
        yield from zip(layers, map(StartValues, factors), strict=True)


def _layer_weight(model: nn.Module, layer: LayerPlan) -> Tensor:
    return dense_weight(*locate_weight(model, layer.name))


def _copy(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a deep copy that shares the weights which will be replaced."""
    places = (locate_weight(model, layer.name) for layer in plan.layers)
    weights = (module._parameters.get(key) for module, key in places)
    return copy_model(model, [weight for weight in weights if weight is not None])


def _check_root(model: nn.Module, plan: Plan) -> None:
    for layer in plan.layers:
        root = locate_weight(model, layer.name)[0] is model
        if root and (layer.method.form == "layer" or isinstance(model, Pressed)):
            raise InvalidArgumentError(
                "a model that is itself the layer to press cannot be pressed in place: use "
                "tensorpress.press_layer"
            )


def _check_devices(model: nn.Module, plan: Plan, parallel: bool) -> None:
    for layer in plan.layers:
        device = next(locate_weight(model, layer.name)[0].parameters()).device
        if parallel and device.type != "cpu":
            raise InvalidArgumentError(
                f"several processes need all weights on the CPU, but layer {layer.name!r} is on "
                f"{device}: use one process, or move the model"
            )
