"""Fits the factors of pressed layers to responses on calibration data."""
