"""Unpressing: pressed layers become dense ones."""

from copy import deepcopy

from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.parametrization import factorized_weight, rebuild
from tensorpress.schemes.press_layer import unpress_layer
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.utils.module_tree import ModuleTree


def unpress(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Make all pressed layers dense again, at the weights that their factors stand for.

    Parameters
    ----------
    model : nn.Module
        A pressed model, unchanged unless ``inplace``.
    inplace : bool
        Change ``model`` itself instead of a copy.

    Returns
    -------
    nn.Module
        The model with dense layers, which computes the same. Biases, train and eval mode and
        ``requires_grad`` stay.

    Raises
    ------
    InvalidArgumentError
        For hooks that would be lost (naming the layer), or if ``inplace`` and the model is itself
        the layer to replace.

    Examples
    --------
    >>> from tensorpress.planning import plan
    >>> from tensorpress.press.press import press
    >>> net = nn.Sequential(nn.Linear(80, 50))
    >>> unpress(press(net, plan(net, scheme="channel_svd", ranks=4)))
    Sequential(
      (0): Linear(in_features=80, out_features=50, bias=True)
    )
    """
    for name, module in model.named_modules():
        if isinstance(module, Pressed):
            check_hooks(name, module)
    if inplace and isinstance(model, Pressed):
        raise InvalidArgumentError(
            "the model is itself the layer to be replaced, which cannot be done in place: use "
            "tensorpress.unpress_layer"
        )
    target = model if inplace else deepcopy(model)
    tree = ModuleTree(target)
    for module in list(target.modules()):
        dense = rebuild_dense(module)
        if dense is not module:
            target = tree.replace(module, dense)
    return target


def rebuild_dense(module: nn.Module) -> nn.Module:
    """Return the dense layer of a pressed one, or any other module itself.

    A layer whose weight is rebuilt from factors becomes dense in place and keeps its hooks.
    """
    if isinstance(module, Pressed):
        return unpress_layer(module)
    if factorized_weight(module) is not None:
        rebuild(module)
    return module


def dense_weight(module: nn.Module) -> Tensor:
    """Return the weight of a layer, dense or pressed."""
    if isinstance(module, Pressed):
        return module.dense_weight().detach()
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def check_hooks(name: str, pressed: Pressed) -> None:
    """Raise an `InvalidArgumentError` if a pressed layer has hooks, which would be lost."""
    for part in pressed.modules():
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        if any(hooks) or part._backward_pre_hooks:
            raise InvalidArgumentError(
                f"layer {name!r} has hooks, which would be lost: remove them first"
            )
