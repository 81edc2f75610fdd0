"""Root-mean-square norm of the last dimension."""

from .op import rms_norm as rms_norm
