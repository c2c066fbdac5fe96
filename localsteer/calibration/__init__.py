"""Calibration: how strong, and at which layers, measured on the user's own model."""
