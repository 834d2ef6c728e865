"""Quantization, entropy coding and the `.tpz` file."""
