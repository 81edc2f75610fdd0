"""HSTU (arXiv 2402.17152) as a ranker, with ULTRA-HSTU's (arXiv 2602.16986) savings as switches."""

from mfu_models.spec import ModelSpec

from .config import SCHEMAS, SIZES, max_lengths
from .flops import model_flops

SPEC = ModelSpec(
    name="hstu",
    summary="HSTU: gated layers of SiLU attention over a history and its candidates; ULTRA-HSTU's savings as switches",
    sizes=SIZES,
    model_flops=model_flops,
    max_lengths=max_lengths,
    module="mfu_models.hstu.model:Hstu",
    schemas=SCHEMAS,
    request_level=True,
)
