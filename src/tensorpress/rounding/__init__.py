"""Coding without training: steps, rounding and the search for what fills a budget."""
