"""Ablations: the road from a baseline to the full model, one switch a step, and each switch taken out of the end."""
