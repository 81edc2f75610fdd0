"""Kernels under the lens: their numbers, their compiled code, their speed."""
