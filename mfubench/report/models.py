"""The zoo as a page: one section a model, with what it is, what it reads and what it costs."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from . import format as fmt
from .blocks import Column, Page, Section, Table

BASIS = (
    "Model FLOPs of one sample with every sequence at its full length, 2 per multiply-add; a GFLOP is 10^9 of them. "
    "A sample is an impression, one candidate with its user's histories, unless a model scores whole requests."
)
WHOLE_REQUESTS = "It scores all candidates of a request in one pass over its user's histories."


def models_page(listed: Sequence[Mapping[str, Any]]) -> Page:
    """The page of what ``mfubench.workload.zoo.list_models`` gives."""
    sections = [Section(model["name"], [_table(model)], brief=True) for model in listed]
    return Page(f"The zoo's {len(listed)} models", BASIS, [], sections)


def _table(model: Mapping[str, Any]) -> Table:
    sizes: Mapping[str, Mapping[str, Any]] = model["sizes"]
    whole_requests = model["request_level"]

    def numbers(header: str, key: str, unit: float = 1) -> tuple[Column, list[str]]:
        return Column(header, numeric=True), [fmt.number(facts[key] / unit, 4) for facts in sizes.values()]

    sample = "request" if whole_requests else "sample"
    by_candidate = [
        (Column("candidates", numeric=True), [fmt.count(facts["num_candidates"]) for facts in sizes.values()]),
        numbers("forward GFLOP/candidate", "fwd_gflops_per_candidate"),
        numbers("training GFLOP/candidate", "train_gflops_per_candidate"),
    ]
    columns = [
        (Column("size"), list(sizes)),
        numbers(f"forward GFLOP/{sample}", "fwd_gflops_per_sample"),
        numbers(f"training GFLOP/{sample}", "train_gflops_per_sample"),
        *(by_candidate if whole_requests else []),
        numbers("dense params M", "dense_params", 1e6),
        numbers("all params M", "params", 1e6),
        (Column("sequences, events"), [_sequences(facts["sequences"]) for facts in sizes.values()]),
    ]
    summary = f"{model['summary'][:1].upper()}{model['summary'][1:]}."
    return Table.of(f"{summary} {WHOLE_REQUESTS}" if whole_requests else summary, columns)


def _sequences(lengths: Mapping[str, int]) -> str:
    """Names and most events; numbered ones of a kind together: ``6 clicks 1024 each``."""
    kinds = Counter((re.sub(r"_\d+$", "", name), length) for name, length in lengths.items())
    return ", ".join(
        f"{kind} {length}" if n == 1 else f"{n} {kind} {length} each" for (kind, length), n in kinds.items()
    )
