"""Checkpoints in Hugging Face's layout: saved, loaded, and pressed without loading the model."""

from tensorpress.checkpoints.load import load_checkpoint
from tensorpress.checkpoints.press_checkpoint import press_checkpoint
from tensorpress.checkpoints.save import save_checkpoint
from tensorpress.checkpoints.unpress_checkpoint import unpress_checkpoint

__all__ = ["load_checkpoint", "press_checkpoint", "save_checkpoint", "unpress_checkpoint"]
