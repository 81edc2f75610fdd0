"""LiGR (arXiv 2502.03417): a gated transformer over a history and its candidates, which then attend to each other."""

from mfu_models.common.config import max_length_of_one
from mfu_models.spec import ModelSpec

from .config import SIZES
from .flops import model_flops

SPEC = ModelSpec(
    name="ligr",
    summary="LiGR: gated transformer over a history and a request's candidates, then attention among the candidates",
    sizes=SIZES,
    model_flops=model_flops,
    max_lengths=max_length_of_one,
    module="mfu_models.ligr.model:Ligr",
    request_level=True,
)
