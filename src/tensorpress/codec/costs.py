"""Whether what a file describes is worth the memory it takes."""

from collections.abc import Iterable
from math import prod

from tensorpress.decompose.tucker import tucker_params
from tensorpress.planning.layer_plans import LayerPlan, PlannedLayer

_ROOM = 1 << 24  # values; a shared core may be larger than the small layers that hold it


def affordable(layers: Iterable[PlannedLayer]) -> bool:
    """Return whether neither factors nor rebuilding take much more than the weights themselves.

    Layers of (s)cada_tucker are counted apart: what they need is known before there is a model.

    Examples
    --------
    >>> affordable([LayerPlan("a", (25, 20), (25, 20), (5, 5))])
    True
    >>> affordable([LayerPlan("a", (25, 20), (25, 20), (9999, 9999))])
    False
    """
    sums = {True: 0, False: 0}
    for layer in layers:
        sums[isinstance(layer, LayerPlan)] += _cost(layer) - 2 * layer.dense_params
    return max(sums.values()) <= _ROOM


def _cost(layer: PlannedLayer) -> int:
    """Return the most values that a layer's factors, or a step of rebuilding its weight, take."""
    if not isinstance(layer, LayerPlan):
        return layer.factor_params
    modes, ranks = layer.modes, layer.ranks
    if layer.core == "diagonal":
        half = (len(modes) + 1) // 2
        return max(ranks) * (1 + prod(modes[:half]) + prod(modes[half:]) + sum(modes))
    widest = prod(max(n, k) for n, k in zip(modes, ranks, strict=True))
    return max(widest, tucker_params(modes, ranks))
