"""Export of models to other formats."""

from typing import Literal

Factors = Literal["materialize", "keep"]
"""Whether weights that are rebuilt from factors are written as dense weights or as factors."""
