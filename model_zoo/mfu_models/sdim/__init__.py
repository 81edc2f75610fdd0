"""SDIM (arXiv 2205.10249): a long history sampled by hashes that collide with the candidate's."""

from mfu_models.spec import ModelSpec

from .config import SIZES, max_lengths
from .flops import model_flops

SPEC = ModelSpec(
    name="sdim",
    summary="SDIM: a long history pooled by hash collisions with the candidate, beside DIN over a short one",
    sizes=SIZES,
    model_flops=model_flops,
    max_lengths=max_lengths,
    module="mfu_models.sdim.model:Sdim",
)
