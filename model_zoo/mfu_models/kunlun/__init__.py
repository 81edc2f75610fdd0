"""Kunlun (arXiv 2602.10016): global interaction over context and event towers, built to use the GPU."""

from mfu_models.spec import ModelSpec

from .config import SIZES, max_lengths
from .flops import model_flops

SPEC = ModelSpec(
    name="kunlun",
    summary="event towers (GDPA, windowed attention, seed pooling) under Wukong experts; every component a switch",
    sizes=SIZES,
    model_flops=model_flops,
    max_lengths=max_lengths,
    module="mfu_models.kunlun.model:Kunlun",
)
