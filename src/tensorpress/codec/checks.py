"""What is checked of a header before anything is allocated from it."""

from collections.abc import Sequence

from tensorpress.codec.costs import affordable
from tensorpress.codec.description import PackedLayer, PackedTucker
from tensorpress.planning.layer_plans import LayerPlan

MAX_MODES = 16
"""Most modes of a layer, and axes of a tensor, that a header is believed."""


class MalformedError(Exception):
    """The header is not of the form it should be."""


def expect(condition: bool) -> None:
    """Raise a `MalformedError` unless something is so."""
    if not condition:
        raise MalformedError


def check_layers(layers: Sequence[PackedLayer]) -> None:
    """Check that layers can be in one model and are worth their memory."""
    expect(len({layer.name for layer in layers}) == len(layers))
    tuckers = [layer for layer in layers if isinstance(layer, PackedTucker)]
    expect(len({layer.ranks for layer in tuckers if layer.core == "shared"}) <= 1)
    expect(affordable(LayerPlan("", t.modes, t.modes, t.ranks, t.core) for t in tuckers))
