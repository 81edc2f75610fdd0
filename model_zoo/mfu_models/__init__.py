"""The model zoo: recommendation rankers that the workbench runs, each with its sizes and its FLOPs in closed form."""

from collections.abc import Mapping

from mfu_kernels.errors import InvalidArgument

from .kunlun import SPEC as KUNLUN
from .spec import ModelSpec
from .transformer import SPEC as TRANSFORMER

MODELS: Mapping[str, ModelSpec] = {spec.name: spec for spec in (TRANSFORMER, KUNLUN)}


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
