"""Pressed models as folders of safetensors, and dense ones pressed without being loaded."""

from tensorpress.checkpoints.load import load_checkpoint
from tensorpress.checkpoints.save import save_checkpoint
from tensorpress.checkpoints.stream import press_checkpoint

__all__ = ["load_checkpoint", "press_checkpoint", "save_checkpoint"]
