"""Wukong (arXiv 2403.02545): stacked factorisation machines over context fields and pooled histories."""

from mfu_models.common.config import max_lengths_of_all
from mfu_models.spec import ModelSpec

from .config import SCHEMAS, SIZES
from .flops import model_flops

SPEC = ModelSpec(
    name="wukong",
    summary="stacked factorisation machines and linear compression: interactions of order 2^layers",
    sizes=SIZES,
    model_flops=model_flops,
    max_lengths=max_lengths_of_all,
    module="mfu_models.wukong.model:Wukong",
    schemas=SCHEMAS,
)
