"""Folds weight norm, spectral norm and pruning masks into plain weights."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    remove_spectral_norm,
)
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from tensorpress.schemes.parametrization import rebuild, stored_factors
from tensorpress.utils.module_tree import copy_model

FOLDED = (
    parametrizations._WeightNorm,
    parametrizations._SpectralNorm,
    parametrizations._Orthogonal,
)


def fold(model: nn.Module) -> nn.Module:
    """Return a model with its computed weights replaced by plain parameters of the same values.

    This folds weight norm and spectral norm (as hooks or parametrizations), orthogonal weights and
    the masks of `torch.nn.utils.prune`. The model's outputs do not change.

    Parameters
    ----------
    model : nn.Module
        The model, left unchanged; it is returned itself if there is nothing to fold.

    Examples
    --------
    >>> net = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    >>> [name for name, _ in fold(net).named_parameters()]
    ['bias', 'weight']
    """
    if not any(map(_foldings, model.modules())):
        return model
    folded = copy_model(model)
    fold_inplace(folded)
    return folded


def fold_inplace(model: nn.Module) -> None:
    """Fold the weights of a model in place; see `fold`."""
    for module in model.modules():
        for action in _foldings(module):
            action()


def _foldings(module: nn.Module) -> list[Callable[[], object]]:
    """Return functions that fold the weights of one module."""
    actions: list[Callable[[], object]] = [
        partial(_fold_parametrization, module, key)
        for key in getattr(module, "parametrizations", ())
        if all(isinstance(step, FOLDED) for step in stored_factors(module, key))
    ]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            actions.append(partial(remove_weight_norm, module, hook.name))
        elif isinstance(hook, SpectralNorm):
            actions.append(partial(_fold_spectral_norm, module, hook.name))
        elif isinstance(hook, prune.BasePruningMethod):
            actions.append(partial(prune.remove, module, hook._tensor_name))
    return actions


def _fold_spectral_norm(module: nn.Module, key: str) -> None:
    remove_spectral_norm(module, key)
    # Torch leaves the hook that loads the vectors of the norm from a state dict.
    hooks = module._load_state_dict_pre_hooks
    for number, wrapped in list(hooks.items()):
        if isinstance(getattr(wrapped, "hook", None), SpectralNormLoadStateDictPreHook):
            del hooks[number]


def _fold_parametrization(module: nn.Module, key: str) -> None:
    # In training mode, spectral norm would take another step of its power iteration.
    stored_factors(module, key).eval()
    rebuild(module, key)
