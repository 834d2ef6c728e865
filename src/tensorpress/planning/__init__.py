"""Planning: which layers are pressed, by what scheme, into which modes and ranks."""

from tensorpress.planning.choose import plan
from tensorpress.planning.layers import plan_of
from tensorpress.planning.plan import SCHEMES, LayerPlan, Plan

__all__ = ["SCHEMES", "LayerPlan", "Plan", "plan", "plan_of"]
