"""Models by name, from the zoo, torchvision, timm, Transformers, or any function."""

from tensorpress.models.inputs import check_inputs, default_inputs, format_inputs, parse_input
from tensorpress.models.loading import load_model
from tensorpress.models.names import ModelName, parse_name
from tensorpress.models.torchvision import torchvision_models

__all__ = [
    "ModelName",
    "check_inputs",
    "default_inputs",
    "format_inputs",
    "load_model",
    "parse_input",
    "parse_name",
    "torchvision_models",
]
