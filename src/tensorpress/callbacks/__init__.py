"""Callbacks for trainers of other packages: `hugging_face` and `lightning`.

Each module imports its package, which need not be installed for the other one.
"""
