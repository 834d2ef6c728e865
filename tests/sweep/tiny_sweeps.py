"""A sweep whose runs take less than a second."""

from typing import Any

import yaml

RECIPE: dict[str, Any] = {
    "title": "LeNet-300-100 on digits",
    "network": "lenet300100",
    "data": {"name": "digits", "validation": 200, "batch_size": 200},
    "dense": {"epochs": 2, "lr": 0.003},
    "press": {"scheme": "channel_svd", "ranks": 4},
    "quantize": {"step": 0.5},
}


def sweep_text(**sections: Any) -> str:
    """The file of a sweep of two variants, with some sections replaced."""
    content = {"recipe": RECIPE, "vary": {"press.ranks": [2, 8]}}
    return yaml.safe_dump(content | sections, sort_keys=False)
