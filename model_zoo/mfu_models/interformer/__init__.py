"""InterFormer (arXiv 2411.09852): context and event history learn from each other's summaries in every layer."""

from mfu_models.common.config import max_lengths_of_all
from mfu_models.spec import ModelSpec

from .config import SCHEMAS, SIZES
from .flops import model_flops

SPEC = ModelSpec(
    name="interformer",
    summary="context (DHEN) and merged history (generated FFN, attention) exchange gated summaries in every layer",
    sizes=SIZES,
    model_flops=model_flops,
    max_lengths=max_lengths_of_all,
    module="mfu_models.interformer.model:InterFormer",
    schemas=SCHEMAS,
)
