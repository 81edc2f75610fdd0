"""Where batches come from: KuaiRand logs, MovieLens folders, or a synthetic log like KuaiRand's.

Nothing here loads torch or pandas before a source is opened.
"""

from pathlib import Path

from mfu_models.batch import Batch, EventSequence, Field, Schema, SequenceField
from mfubench.errors import BadInput

from .source import Source


def open_source(text: str, synthetic_schema: Schema) -> Source:
    """The source that ``text`` names: ``synthetic``, ``kuairand:PATH`` or ``movielens:PATH``.

    PATH is a folder or a csv file. ``synthetic_schema`` is what the synthetic source generates; files bring their own.

    Raises:
        BadInput: an unknown kind, a missing or needless PATH, or files that are not such data.
    """
    kind, path = require_source(text)
    if kind == "synthetic":
        from .synthetic import SyntheticSource

        return SyntheticSource(synthetic_schema)
    if kind == "kuairand":
        from .kuairand import read_kuairand

        return read_kuairand(Path(path).expanduser())
    from .movielens import read_movielens

    return read_movielens(Path(path).expanduser())


def require_source(text: str) -> tuple[str, str]:
    """The kind of source that ``text`` names, and its PATH.

    Raises:
        BadInput: an unknown kind, a missing or needless PATH.
    """
    kind, _, path = text.partition(":")
    if text != "synthetic" and not (kind in ("kuairand", "movielens") and path):
        raise BadInput(f"data source {text!r} is unknown; allowed: synthetic, kuairand:PATH, movielens:PATH")
    return kind, path


__all__ = ["Batch", "EventSequence", "Field", "Schema", "SequenceField", "Source", "open_source", "require_source"]
