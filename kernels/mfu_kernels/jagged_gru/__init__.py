"""A GRU along each row of packed values, its update gate scaled by attention where asked for."""

from .op import jagged_gru as jagged_gru
