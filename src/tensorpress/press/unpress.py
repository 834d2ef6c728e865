"""`unpress`: pressed layers become dense again."""

from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.parametrization import factorized_weight, rebuild
from tensorpress.schemes.press_layer import unpress_layer
from tensorpress.schemes.pressed_layer import Pressed, pressed_forms
from tensorpress.utils.module_tree import ModuleTree, copy_model


def unpress(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Make all pressed layers dense again, with their composed weights.

    Parameters
    ----------
    model : nn.Module
        A pressed model, unchanged unless ``inplace``.
    inplace : bool
        Change ``model`` itself instead of a copy.

    Returns
    -------
    nn.Module
        The model with dense layers, which has the same outputs. Biases, train or eval mode and
        ``requires_grad`` are preserved.

    Raises
    ------
    InvalidArgumentError
        If hooks would be lost (the message names the layer), or if ``inplace`` and the model is
        itself the layer to replace.

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
            "a model that is itself the layer to unpress cannot be unpressed in place: use "
            "tensorpress.unpress_layer"
        )
    target = model if inplace else copy_model(model)
    tree = ModuleTree(target)
    for module in list(target.modules()):
        for key in pressed_forms(module):
            dense = rebuild_dense(module, key)
            if dense is not module:
                target = tree.replace(module, dense)
    return target


def rebuild_dense(module: nn.Module, key: str = "weight") -> nn.Module:
    """Return the dense form of a pressed layer, and any other module itself.

    If only the weight is rebuilt from factors, the layer becomes dense in place and keeps its
    hooks.
    """
    if isinstance(module, Pressed):
        return unpress_layer(module)
    if factorized_weight(module, key) is not None:
        rebuild(module, key)
    return module


def dense_weight(module: nn.Module, key: str = "weight") -> Tensor:
    """Return the dense weight of a layer, which may be pressed."""
    if isinstance(module, Pressed):
        return module.dense_weight().detach()
    weight = getattr(module, key)
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
