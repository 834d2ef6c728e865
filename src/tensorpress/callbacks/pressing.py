"""Pressing of a model during training, and the parameters that its optimizers train afterwards."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.press.press import press
from tensorpress.utils.module_tree import unwrap

logger = logging.getLogger("tensorpress.callbacks")

PlanSource = Plan | Callable[[nn.Module], Plan]
"""A plan, or a function that makes one from the model when it is pressed."""


class Pressing:
    """A plan, and the time during training at which to press a model by it.

    Parameters
    ----------
    plan : Plan, callable or None
        The plan, or a function of the model that returns it; None if the model is already pressed.
    step : int, optional
        Number of optimizer steps before pressing.
    epoch : int, optional
        Number of epochs before pressing. By default the model is pressed before training.

    Raises
    ------
    InvalidArgumentError
        If both step and epoch are set, one of them is set without a plan, or one is below 1.
    """

    def __init__(self, plan: PlanSource | None, step: int | None, epoch: int | None) -> None:
        moments = [moment for moment in (step, epoch) if moment is not None]
        if len(moments) > 1 or any(moment < 1 for moment in moments):
            raise InvalidArgumentError(
                f"expected step or epoch, at least 1, or neither, to press before training; got "
                f"step={step} and epoch={epoch}"
            )
        if plan is None and moments:
            raise InvalidArgumentError("pressing during training needs a plan")
        self._plan, self._step, self._epoch = plan, step, epoch

    def due(self, step: int, epoch: float) -> bool:
        """Return whether to press a model after these numbers of steps and epochs."""
        if self._plan is None:
            return False
        if self._step is not None:
            return step >= self._step
        return self._epoch is None or epoch >= self._epoch

    def check_processes(self, model: nn.Module) -> None:
        """Raise an error if a model that several processes train would be pressed later.

        DistributedDataParallel and FSDP synchronize the parameters that exist at the start.
        """
        later = self._step is not None or self._epoch is not None
        if later and _count_processes() > 1 and not is_pressed(model):
            raise InvalidArgumentError(
                "with several processes a model must be pressed before training, because they "
                "synchronize the parameters that exist at the start: set neither step nor epoch"
            )

    def press(self, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()) -> None:
        """Press a model in place, unless it is pressed, and make its optimizers train the factors.

        Raises
        ------
        InvalidArgumentError, ModelMismatchError
            As `tensorpress.press` does.
        """
        model = unwrap(model)
        if self._plan is None or is_pressed(model):
            return
        plan = self._plan if isinstance(self._plan, Plan) else self._plan(model)
        before = dict(model.named_parameters())
        press(model, plan, inplace=True)
        for optimizer in optimizers:
            replace_parameters(optimizer, before, model)
        logger.info("pressed %d layers in training", len(plan.layers))


def _count_processes() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def is_pressed(model: nn.Module) -> bool:
    """Return whether a model has pressed layers."""
    return bool(plan_from_model(unwrap(model)).layers)


def replace_parameters(
    optimizer: torch.optim.Optimizer, before: Mapping[str, nn.Parameter], model: nn.Module
) -> None:
    """Make an optimizer train the parameters of a model that was pressed in place.

    Factors join the parameter group of the weight that they replace, with its learning rate and
    decay. Their state is new; that of other parameters is preserved. Parameters in groups are in
    the order of the model, like those of a new optimizer for the pressed model, so that the state
    can be loaded there.

    Parameters
    ----------
    optimizer : Optimizer
        The optimizer, which is changed in place.
    before : mapping of str to Parameter
        The parameters of the model before pressing, by name.
    model : nn.Module
        The pressed model.

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> net = nn.Sequential(nn.Linear(80, 50, bias=False))
    >>> optimizer, before = torch.optim.SGD(net.parameters(), lr=0.1), dict(net.named_parameters())
    >>> _ = press(net, plan(net, scheme="channel_svd", ranks=4), inplace=True)
    >>> replace_parameters(optimizer, before, net)
    >>> [tuple(p.shape) for p in optimizer.param_groups[0]["params"]]
    [(4, 80), (50, 4)]
    """
    after = dict(model.named_parameters())
    known, remaining = set(before.values()), set(after.values())
    gone = {name: parameter for name, parameter in before.items() if parameter not in remaining}
    groups: dict[nn.Parameter, dict[str, Any]] = {
        parameter: group for group in optimizer.param_groups for parameter in group["params"]
    }
    for name, parameter in after.items():
        if parameter not in known:
            group = groups.get(gone[_replaced_name(name, gone)])
            if group is not None:
                group["params"].append(parameter)
    order = {parameter: place for place, parameter in enumerate(after.values())}
    for group in optimizer.param_groups:
        parameters = [p for p in group["params"] if p in order or p not in known]
        # Parameters outside the model, such as those of a loss, come last.
        group["params"] = sorted(parameters, key=lambda p: order.get(p, len(order)))
    for parameter in gone.values():
        optimizer.state.pop(parameter, None)


def _replaced_name(name: str, gone: Iterable[str]) -> str:
    """Return the name of the parameter that a factor or a bias replaces.

    ``fc.1.bias`` replaces ``fc.bias``, ``fc.0.weight`` replaces ``fc.weight``, and
    ``fc.parametrizations.weight.original0`` as well.
    """
    layer, key = _place(name)
    places = {old: _place(old) for old in gone}
    owners = [old for old, place in places.items() if f"{layer}.".startswith(f"{place[0]}.")]
    depth = max(len(places[old][0]) for old in owners)
    owners = [old for old in owners if len(places[old][0]) == depth]
    weights = [old for old in owners if places[old][1] != "bias"]
    return next((old for old in owners if places[old][1] == key), (weights or owners)[0])


def _place(name: str) -> tuple[str, str]:
    """Return the module and key of a parameter, which may be a factor."""
    layer, parametrized, rest = name.partition(".parametrizations.")
    if parametrized:
        return layer, rest.partition(".")[0]
    layer, _, key = name.rpartition(".")
    return layer, key
