"""Whether a batch fits the schema and the model that it is for."""

from collections.abc import Mapping

from torch import Tensor

from mfu_models.batch import Batch, Field, Schema

from .config import require


def check_batch(batch: Batch, schema: Schema, max_lengths: Mapping[str, int]) -> None:
    """Hold every id against its field's vocabulary and every history against its maximum length.

    One look-up serves the tables of several fields, so an id beyond one vocabulary would read the next field's rows. On
    a GPU this waits for the device: check batches on the host.

    Raises:
        InvalidArgument: which field or sequence, the value, and what is allowed.
    """
    for place, field in enumerate(schema.sparse):
        _check_ids(field, batch.sparse[:, place], "sparse")
    _check_items(schema, batch.candidate_items, batch.candidate_sides, "candidates")
    for name, sequence in batch.sequences.items():
        _check_items(schema, sequence.item_ids, sequence.side_ids, name)
        longest, most = max(sequence.lengths(), default=0), max_lengths[name]
        require(longest <= most, f"a history of {name} has {longest} events; allowed: at most {most}")


def _check_items(schema: Schema, items: Tensor, sides: Tensor, where: str) -> None:
    _check_ids(schema.item, items, where)
    for place, side in enumerate(schema.sides):
        _check_ids(side, sides[:, place], where)


def _check_ids(field: Field, ids: Tensor, where: str) -> None:
    if ids.numel():
        low, high = int(ids.min()), int(ids.max())
        wrong = low if low < 0 else high
        allowed = f"0 to {field.vocab - 1}"
        require(
            low >= 0 and high < field.vocab, f"{where}: field {field.name!r} has the id {wrong}; allowed: {allowed}"
        )
