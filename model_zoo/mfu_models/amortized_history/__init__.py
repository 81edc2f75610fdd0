"""LinkedIn's amortised history modelling (arXiv 2412.06924): all candidates of a request share one history pass."""

from mfu_models.common.config import max_length_of_one
from mfu_models.spec import ModelSpec

from .config import SIZES
from .flops import model_flops

SPEC = ModelSpec(
    name="amortized_history",
    summary="one transformer pass over a history that all candidates of a request query, instead of one for each",
    sizes=SIZES,
    model_flops=model_flops,
    max_lengths=max_length_of_one,
    module="mfu_models.amortized_history.model:AmortizedHistory",
    request_level=True,
)
