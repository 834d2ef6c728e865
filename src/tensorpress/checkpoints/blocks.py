"""The blocks of a model: equal modules in a chain, such as the layers of a transformer."""

from torch import nn

from tensorpress.errors import InvalidArgumentError

RIVAL = 0.5
"""A model with a second list of blocks, at least this fraction of the largest, is not one chain."""


def find_blocks(model: nn.Module) -> list[str]:
    """Return the names of a model's blocks in order, such as the layers of a transformer.

    They are the entries of the longest ModuleList whose modules have the same class. Lists inside a
    block, such as the experts of a layer, do not count.

    Parameters
    ----------
    model : nn.Module
        The model, which may be on the meta device.

    Raises
    ------
    InvalidArgumentError
        If there is no such list, or a second list of similar size, as in an encoder-decoder.

    Examples
    --------
    >>> blocks = [nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)]
    >>> find_blocks(nn.ModuleDict({"layers": nn.ModuleList(blocks)}))
    ['layers.0', 'layers.1']
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inner = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inner and _are_equal(module):
            lists[name] = module
    kind = type(model).__name__
    if not lists:
        raise InvalidArgumentError(f"{kind} has no ModuleList of blocks of one class, so {INSTEAD}")
    longest = max(lists, key=lambda name: (len(lists[name]), _count_params(lists[name])))
    least = RIVAL * _count_params(lists[longest])
    rivals = [name for name in lists if name != longest and _count_params(lists[name]) > least]
    if rivals:
        raise InvalidArgumentError(
            f"{kind} has blocks in {longest!r} and in {rivals[0]!r}, which is not one chain, so "
            f"{INSTEAD}"
        )
    return [f"{longest}.{key}" for key in lists[longest]._modules]


INSTEAD = (
    "it cannot be calibrated block by block: press the loaded model by tensorpress.press(model, "
    "plan, calibration=...), or the checkpoint without calibration"
)
"""Advice for a model that is not a chain of blocks."""


def _are_equal(modules: nn.ModuleList) -> bool:
    """Return whether modules have the same class, and more than one layer each."""
    return len({type(x) for x in modules}) == 1 and any(True for x in modules for _ in x.children())


def _count_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
