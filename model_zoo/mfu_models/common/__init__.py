"""Layers and formulas that several models share."""
