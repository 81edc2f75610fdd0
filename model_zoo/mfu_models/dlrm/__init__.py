"""DLRMv2: low-rank cross layers over context fields and pooled histories, then a deep MLP."""

from mfu_models.common.config import max_lengths_of_all
from mfu_models.spec import ModelSpec

from .config import SCHEMAS, SIZES
from .flops import model_flops

SPEC = ModelSpec(
    name="dlrm",
    summary="DLRMv2: context fields and pooled histories through low-rank cross layers and a deep MLP",
    sizes=SIZES,
    model_flops=model_flops,
    max_lengths=max_lengths_of_all,
    module="mfu_models.dlrm.model:Dlrm",
    schemas=SCHEMAS,
)
