"""Generalised dot-product attention: an activation where softmax would be."""

from .op import gdpa as gdpa
