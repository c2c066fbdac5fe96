"""Calibration: how strong a vector may be, measured on the user's own model."""
