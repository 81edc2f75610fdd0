"""What every data source offers: a schema, an identity, and batches drawn by a seed."""

from collections.abc import Mapping
from typing import Protocol

from mfu_models.batch import Batch, Schema
from mfubench.errors import BadInput

ACTION_SIDE = "action"  # the side id that says what the user did; a candidate's is always 0, as it would tell the label


class Source(Protocol):
    """A data set, real or synthetic, that batches are drawn from."""

    @property
    def schema(self) -> Schema:
        """The fields, sequences and target of every batch."""

    @property
    def description(self) -> str:
        """One line for reports: source, users, events, rate of the target."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal data: the files' content digest, or the version of what is synthesised."""

    @property
    def num_impressions(self) -> int | None:
        """How many there are to draw from; None where they are made as they are drawn."""

    def batches(
        self,
        batch_size: int,
        num_batches: int,
        *,
        seed: int,
        max_lengths: Mapping[str, int],
        num_candidates: int = 1,
    ) -> list[Batch]:
        """``num_batches`` batches on the CPU, the same for the same seed; batch i does not depend on ``num_batches``.

        A batch has ``batch_size`` requests of ``num_candidates`` each. Each sequence keeps the most recent
        ``max_lengths[name]`` events strictly before the request's time, which is its first candidate's.

        Raises:
            BadInput: a size below 1, a negative seed, lengths that do not name the schema's sequences, or more
                candidates than any user has impressions.
        """


def check_request(
    schema: Schema, batch_size: int, num_batches: int, seed: int, max_lengths: Mapping[str, int], num_candidates: int
) -> None:
    """Raise BadInput unless batches can be drawn so (see ``Source.batches``)."""
    sizes = (("batch_size", batch_size), ("num_batches", num_batches), ("num_candidates", num_candidates))
    for name, value, least in (*((name, value, 1) for name, value in sizes), ("seed", seed, 0)):
        if value < least:
            raise BadInput(f"{name}={value}; allowed: {least} or more")
    expected = {sequence.name for sequence in schema.sequences}
    if expected != set(max_lengths):
        raise BadInput(
            f"maximum lengths are given for {_names(max_lengths)}; the {schema.source} sequences, "
            f"each of which needs one, are {_names(expected)}"
        )
    for name, length in max_lengths.items():
        if length < 1:
            raise BadInput(f"maximum length of {name!r} is {length}; allowed: 1 or more")


def _names(names: "Mapping[str, int] | set[str]") -> str:
    return ", ".join(sorted(names)) or "none"
