"""The contract between a model of the zoo and whatever runs it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mfu_kernels.errors import InvalidArgument

from .batch import Schema
from .common.config import SYNTHETIC_SCHEMAS, override
from .common.flops import FlopCount

if TYPE_CHECKING:
    from torch import nn

    from mfu_kernels.registry import Impl


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: its sizes, how to configure and build it, and its model FLOPs in closed form.

    ``sizes`` maps a size's name to a function of the schema that gives the frozen config; ``max_lengths`` names the
    sequences that the model reads, with the most events of each. ``module`` is ``package.module:Class``, imported when
    it is built. ``schemas`` are synthetic schemas of the model's own, where its paper's inputs differ from the others'.

    A ``request_level`` model scores all candidates of a request in one pass: its config has a ``num_candidates`` m, its
    forward takes B requests of m candidates and gives B*m logits, and its FLOPs are a request's. The others see
    impressions: a batch of requests is turned into ``Batch.per_impression()`` for them.
    """

    name: str
    summary: str
    sizes: Mapping[str, Callable[[Schema], Any]]
    model_flops: Callable[[Any, Mapping[str, Sequence[int]]], FlopCount]
    max_lengths: Callable[[Any], dict[str, int]]
    module: str
    schemas: Mapping[str, Schema] = field(default_factory=lambda: SYNTHETIC_SCHEMAS)
    request_level: bool = False

    def config(self, size: str, schema: Schema | None = None, overrides: Mapping[str, Any] | None = None) -> Any:
        """The frozen config of ``size`` for ``schema`` (default: the size's synthetic schema), with overrides applied.

        Raises:
            InvalidArgument: an unknown size or field, or values that make no model.
        """
        if size not in self.sizes:
            raise InvalidArgument(f"{self.name} has no size {size!r}; it has: {', '.join(self.sizes)}")
        return override(self.sizes[size](schema or self.schemas[size]), overrides or {})

    def build(self, config: Any, impl: "Impl" = "auto") -> "nn.Module":
        """The module, on torch's current default device, with every op's implementation chosen by ``impl``."""
        module_name, _, class_name = self.module.partition(":")
        module: nn.Module = getattr(import_module(module_name), class_name)(config, impl)
        return module

    def outline(self, config: Any) -> "nn.Module":
        """The module without the numbers of its weights, which are on the device "meta": the largest have billions."""
        from .common.outline import WithoutNumbers

        with WithoutNumbers():
            return self.build(config)

    def full_length_flops(self, config: Any) -> FlopCount:
        """Model FLOPs of one sample (a request, if request-level) with every sequence at its full length."""
        return self.model_flops(config, {name: [length] for name, length in self.max_lengths(config).items()})
