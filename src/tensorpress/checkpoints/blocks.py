"""The blocks of a model: the equal modules through which one hidden state goes after another."""

from torch import nn

from tensorpress.errors import InvalidArgumentError

RIVAL = 0.5
"""A second list of blocks with more than this part of the first one's parameters is no detail."""


def find_blocks(model: nn.Module) -> list[str]:
    """Return the names of a model's blocks, such as the layers of a transformer, in their order.

    They are the entries of the longest ModuleList of modules of one class that is not itself within
    an entry of such a list, as the experts of a layer are.

    Parameters
    ----------
    model : nn.Module
        The model, which may be on the meta device.

    Raises
    ------
    InvalidArgumentError
        If there is no such list, or a second one that is about as large, as of an encoder and a
        decoder.

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
        raise InvalidArgumentError(f"{kind} has no ModuleList of equal blocks: {INSTEAD}")
    longest = max(lists, key=lambda name: (len(lists[name]), _count_params(lists[name])))
    least = RIVAL * _count_params(lists[longest])
    rivals = [name for name in lists if name != longest and _count_params(lists[name]) > least]
    if rivals:
        raise InvalidArgumentError(
            f"{kind} has blocks in {longest!r} and in {rivals[0]!r}, between which more than one "
            f"hidden state goes: {INSTEAD}"
        )
    return [f"{longest}.{key}" for key in lists[longest]._modules]


INSTEAD = (
    "it cannot be calibrated block by block. Press the loaded model by tensorpress.press(model, "
    "plan, calibration=...), or the checkpoint without calibration"
)
"""What to do with a model that cannot be split."""


def _are_equal(modules: nn.ModuleList) -> bool:
    """Tell whether modules are of one class, and of more than one layer."""
    return len({type(x) for x in modules}) == 1 and any(True for x in modules for _ in x.children())


def _count_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
