"""How much a model loses when its layers are pressed."""

from tensorpress.sensitivity.scoring import sensitivity

__all__ = ["sensitivity"]
