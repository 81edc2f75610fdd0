"""Layer norm of the last dimension, with an optional residual that is added first."""

from .op import layer_norm as layer_norm
