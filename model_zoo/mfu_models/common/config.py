"""What the frozen configs of all models share: synthetic schemas by size, and overriding fields by name."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mfu_kernels.errors import InvalidArgument
from mfu_models.batch import Field, Schema, SequenceField, SequenceKind

C = TypeVar("C")
NUM_DENSE = 13  # dense features of the public click logs (Criteo) and of DLRMv2's bottom MLP
SPARSE_VOCAB = 1_000


def synthetic_schema(num_sparse: int, item_vocab: int, num_clicks: int = 1, num_impressions: int = 1) -> Schema:
    """What the synthetic source offers, with this many sparse fields and sequences of clicks and of impressions."""

    def sequences(name: str, kind: SequenceKind, count: int) -> tuple[SequenceField, ...]:
        return tuple(SequenceField(name if count == 1 else f"{name}_{i}", kind) for i in range(count))

    return Schema(
        source="synthetic",
        dense=tuple(f"dense_{i}" for i in range(NUM_DENSE)),
        sparse=tuple(Field(f"sparse_{i}", SPARSE_VOCAB) for i in range(num_sparse)),
        item=Field("item", item_vocab),
        sides=(Field("category", 200), Field("action", 16)),
        sequences=sequences("clicks", "engagement", num_clicks) + sequences("impressions", "exposure", num_impressions),
        target="is_click",
    )


SYNTHETIC_SCHEMAS: Mapping[str, Schema] = {
    "tiny": synthetic_schema(8, 1_000),
    "small": synthetic_schema(16, 10_000),
    "base": synthetic_schema(32, 20_000),
    "large": synthetic_schema(64, 50_000),
    "large_plus": synthetic_schema(64, 50_000),
    "xl": synthetic_schema(128, 50_000, 2, 2),
    "xxl": synthetic_schema(128, 50_000, 6, 4),
}
"""What the synthetic source offers each size: the same for every model, so that models compare on the same data."""


def max_lengths_of_all(config: Any) -> dict[str, int]:
    """The most events that each sequence keeps, of a model that reads them all and as much of each."""
    return {sequence.name: config.max_length for sequence in config.schema.sequences}


def max_length_of_one(config: Any) -> dict[str, int]:
    """The most events that its one sequence keeps, of a model that reads a single ``history``."""
    return {config.history.name: config.max_length}


def num_context_tokens(schema: Schema) -> int:
    """Tokens of what is no sequence: one for each sparse field and one for the dense features."""
    return len(schema.sparse) + 1


def override(config: C, changes: Mapping[str, Any]) -> C:
    """A copy of ``config`` with fields replaced; ``a.b`` names a field of a nested config; text is parsed by type.

    All changes take effect together, so their order does not matter.

    Raises:
        InvalidArgument: a field that does not exist, a value that is not of the field's type, or no valid config.
    """
    changed: C = _override(config, changes, "")
    return changed


def _override(config: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    hints = get_type_hints(type(config))
    allowed = [field.name for field in fields(config) if field.name != "schema"]
    new: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        full = prefix + path
        name, _, rest = path.partition(".")
        if name not in allowed:
            raise InvalidArgument(f"{full!r} is not a field of this model's config; allowed: {', '.join(allowed)}")
        current = getattr(config, name)
        if rest and not is_dataclass(current):
            raise InvalidArgument(f"{full!r}: {name} has no fields of its own")
        if rest:
            nested.setdefault(name, {})[rest] = value
        elif is_dataclass(current):
            inner = ", ".join(f"{full}.{field.name}" for field in fields(current))
            raise InvalidArgument(f"{full!r} is a group; set one of its fields: {inner}")
        else:
            new[name] = _parse(value, hints[name], full)
    for name, inner_changes in nested.items():
        new[name] = _override(getattr(config, name), inner_changes, f"{prefix}{name}.")
    return replace(config, **new)


_ALLOWED = {bool: "true, false", int: "a whole number", float: "a number"}


def _parse(value: Any, kind: Any, name: str) -> Any:
    """``value`` as ``kind``: bool, int, float, str, Literal or tuple[int, ...]."""
    choices = get_args(kind) if "Literal" in str(get_origin(kind)) else ()
    text = str(value).strip()
    try:
        if choices:
            return dict((str(choice), choice) for choice in choices)[text]
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if get_origin(kind) is tuple:
            parts = value if isinstance(value, (tuple, list)) else text.strip("()[] ").split(",")
            return tuple(int(str(part)) for part in parts)
        return kind(text)
    except (KeyError, ValueError):
        allowed = ", ".join(map(str, choices)) or _ALLOWED.get(kind, "whole numbers, separated by commas")
        raise InvalidArgument(f"{name}={value!r} is not allowed; allowed: {allowed}") from None


def require(condition: bool, message: str) -> None:
    """Raise InvalidArgument(message) unless ``condition``: how a config refuses values that make no model."""
    if not condition:
        raise InvalidArgument(message)


def require_sizes(config: Any, *names: str) -> None:
    """Each of these fields of ``config``, a number or a tuple of widths, is at least 1.

    Raises:
        InvalidArgument: one is not.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, tuple):
            require(min(value, default=1) >= 1, f"{name}={value}; allowed: widths of at least 1")
        else:
            require(value >= 1, f"{name}={value}; allowed: at least 1")
