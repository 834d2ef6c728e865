"""Recipes whose runs take a second."""

from typing import Any

import yaml

from tensorpress.runs.recipe import Recipe, parse_recipe

TINY = """\
title: LeNet-300-100 on digits
network: lenet300100
data: {name: digits, validation: 200, batch_size: 200}
dense: {epochs: 6, lr: 0.003}
press:
  scheme: ada_tucker
  overrides:
    ip1: {modes: [28, 28, 20, 15], ranks: 4}
    ip2: {modes: [20, 15, 10, 10], ranks: 4}
train: {epochs: 2, lr: 0.01, schedule: cosine}
quantize:
  levels: 128
  bound: 3
  finetune: {epochs: 2, lr: 0.002}
"""


def recipe(**sections: Any) -> Recipe:
    """The tiny recipe with some sections replaced, or left out where None is given."""
    content = yaml.safe_load(TINY) | sections
    kept = {key: value for key, value in content.items() if value is not None}
    return parse_recipe(yaml.safe_dump(kept))
