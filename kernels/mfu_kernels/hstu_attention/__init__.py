"""HSTU's attention: SiLU in place of softmax, causal, with a request's candidates at the end of its row."""

from .op import hstu_attention as hstu_attention
