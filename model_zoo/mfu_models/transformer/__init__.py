"""The baseline: a transformer encoder over one history and the candidate, after BST and SASRec."""

from mfu_models.common.config import max_length_of_one
from mfu_models.spec import ModelSpec

from .config import SIZES
from .flops import model_flops

SPEC = ModelSpec(
    name="transformer",
    summary="baseline ranker: a transformer over one history and the candidate, context joins at the head",
    sizes=SIZES,
    model_flops=model_flops,
    max_lengths=max_length_of_one,
    module="mfu_models.transformer.model:TransformerRanker",
)
