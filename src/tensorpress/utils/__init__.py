"""Helpers for files, configuration, text, hashing, progress, jobs and modules."""
