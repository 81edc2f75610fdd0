"""Rotary embedding of position and time."""

from .op import rotary_angles as rotary_angles
from .op import rotary_time as rotary_time
