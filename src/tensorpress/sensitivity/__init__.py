"""Measures and estimates the loss of a model when its layers are pressed."""

from tensorpress.sensitivity.measure_layers import sensitivity

__all__ = ["sensitivity"]
