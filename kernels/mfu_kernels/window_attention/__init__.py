"""Softmax self-attention within each row, over a window of neighbours."""

from .op import window_attention as window_attention
from .op import window_attention_qkvpacked as window_attention_qkvpacked
