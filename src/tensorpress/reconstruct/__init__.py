"""Factors that keep a layer's responses to real inputs, and not its weights."""
