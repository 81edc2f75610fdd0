"""DIN (arXiv 1706.06978) and, as a switch, DIEN (arXiv 1809.03672): a history seen from its candidate."""

from mfu_models.common.config import max_length_of_one
from mfu_models.spec import ModelSpec

from .config import SIZES
from .flops import model_flops

SPEC = ModelSpec(
    name="din",
    summary="DIN's local activation of each event by the candidate; DIEN's recurrent interests as a switch",
    sizes=SIZES,
    model_flops=model_flops,
    max_lengths=max_length_of_one,
    module="mfu_models.din.model:Din",
)
