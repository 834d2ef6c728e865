"""Callbacks for trainers of other packages: `hugging_face` and `lightning`.

Each module imports only its own package.
"""
