"""Export of models to other formats."""

from typing import Literal

Factors = Literal["materialize", "keep"]
"""Whether weights stored as factors are written as dense weights or as factors."""
