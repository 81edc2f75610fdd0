"""The model zoo: recommendation rankers that the workbench runs, each with its sizes and its FLOPs in closed form."""

from collections.abc import Mapping

from mfu_kernels.errors import InvalidArgument

from .amortized_history import SPEC as AMORTIZED_HISTORY
from .din import SPEC as DIN
from .dlrm import SPEC as DLRM
from .hstu import SPEC as HSTU
from .interformer import SPEC as INTERFORMER
from .kunlun import SPEC as KUNLUN
from .ligr import SPEC as LIGR
from .sdim import SPEC as SDIM
from .spec import ModelSpec
from .transformer import SPEC as TRANSFORMER
from .wukong import SPEC as WUKONG

MODELS: Mapping[str, ModelSpec] = {
    spec.name: spec
    for spec in (TRANSFORMER, DLRM, DIN, WUKONG, INTERFORMER, HSTU, LIGR, AMORTIZED_HISTORY, SDIM, KUNLUN)
}


def model_spec(name: str) -> ModelSpec:
    """The model of the zoo called ``name``.

    Raises:
        InvalidArgument: there is none.
    """
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise InvalidArgument(
            f"unknown model {name!r}; the zoo has: {known}; for your own model give package.module:build"
        )
    return MODELS[name]


__all__ = ["MODELS", "ModelSpec", "model_spec"]
