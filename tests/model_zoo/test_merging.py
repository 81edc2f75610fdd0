"""Merging sequences: by recency, with zeros where there is no event, and a mask that depends on the merged events."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfu_models.batch import Batch, EventSequence
from mfu_models.common.merging import Alignment, MaskNet, merged_lengths

Rows = list[list[int]]


def sequence_of(rows: Rows) -> EventSequence:
    """Events whose item ids and times are the given numbers."""
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    return EventSequence(values, values[:, None], values, offsets, max(map(len, rows)))


def merged(*sequences: Rows) -> tuple[Alignment, list[EventSequence]]:
    parts = [sequence_of(rows) for rows in sequences]
    return Alignment.of(parts), parts


def by_hand(*sequences: Rows) -> list[list[int]]:
    """The merged rows one under the other, filled from the end of each; 0 where a sequence has no event."""
    places = []
    for rows in zip(*sequences, strict=True):
        longest = max(map(len, rows))
        places += [list(place) for place in zip(*([0] * (longest - len(row)) + row for row in rows), strict=True)]
    return places


def test_the_most_recent_events_share_a_place() -> None:
    alignment, parts = merged([[1, 2, 3], [], [4], []], [[5], [6, 7], [8], []])
    values = alignment.join([part.item_ids[:, None] for part in parts])
    assert values.tolist() == [[1, 0], [2, 0], [3, 5], [0, 6], [0, 7], [4, 8]]
    assert alignment.offsets.tolist() == [0, 3, 5, 6, 6]
    assert (alignment.num_events, alignment.max_length) == (6, 3)


rows_of_events = st.lists(st.integers(1, 99), max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 3).flatmap(lambda k: st.lists(st.tuples(*[rows_of_events] * k), min_size=1, max_size=4)))
def test_merging_is_filling_from_the_end(samples: list[tuple[list[int], ...]]) -> None:
    sequences = [list(rows) for rows in zip(*samples, strict=True)]
    alignment, parts = merged(*sequences)
    expected = by_hand(*sequences)
    assert alignment.join([part.item_ids[:, None] for part in parts]).tolist() == expected
    assert alignment.num_events == len(expected)  # a row's longest sequence, and no padding
    lengths = merged_lengths([part.lengths() for part in parts])
    assert alignment.offsets.diff().tolist() == lengths and alignment.max_length == max(lengths)


def test_lengths_that_the_host_knows_are_not_read_from_the_device() -> None:
    """There are no numbers on "meta": what is needed of them came along."""
    parts = [sequence_of(rows) for rows in ([[1, 2, 3], [], [4]], [[5], [6, 7], [8]])]
    known = [replace(part, host_lengths=np.array(part.lengths())) for part in parts]
    moved = [_of_batch(part).to("meta").sequences["events"] for part in known]
    assert [part.lengths() for part in moved] == [part.lengths() for part in parts]
    assert Alignment.of(moved).num_events == Alignment.of(parts).num_events == 6
    twice = [part.repeat(2) for part in known]
    assert [part.host_lengths.tolist() for part in twice] == [part.offsets.diff().tolist() for part in twice]
    with pytest.raises(RuntimeError, match="meta"):
        Alignment.of([moved[0], _of_batch(parts[1]).to("meta").sequences["events"]])


def test_what_is_compiled_takes_no_numbers_of_the_host() -> None:
    """They would be a CPU's tensors in the graph of a GPU: no CUDA graph holds it, and a C++ compiler must make it."""
    parts = [sequence_of(rows) for rows in ([[1, 2, 3], [], [4]], [[5], [6, 7], [8]])]
    known = [replace(part, host_lengths=np.array(part.lengths())) for part in parts]
    inputs: list[str] = []

    def note(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        inputs.extend(node.name for node in graph.graph.nodes if node.op == "placeholder")
        return graph

    torch.compiler.reset()
    assert torch.compile(Alignment.of, backend=note)(known).num_events == 6
    assert any("offsets" in name for name in inputs) and not any("host_lengths" in name for name in inputs)


def _of_batch(sequence: EventSequence) -> Batch:
    nothing = torch.zeros(3)
    return Batch(nothing, nothing, nothing, nothing, nothing, nothing, {"events": sequence})


def test_the_latest_event_of_a_place_gives_its_time() -> None:
    alignment, parts = merged([[10, 40], [20]], [[15, 30, 35], []])
    assert alignment.latest([part.times_ms for part in parts]).tolist() == [15, 30, 40, 20]


def test_gradients_reach_every_event_and_no_other() -> None:
    alignment, parts = merged([[1, 2], []], [[3], [4, 5]])
    values = [torch.randn(len(part.item_ids), 2, requires_grad=True) for part in parts]
    weight = torch.randn(alignment.num_events, 4)
    (alignment.join(values) * weight).sum().backward()
    assert torch.equal(values[0].grad, weight[[0, 1], :2])
    assert torch.equal(values[1].grad, weight[[1, 2, 3], 2:])


@pytest.fixture
def mask_net() -> MaskNet:
    return MaskNet(6, 4)


def test_mask_net_is_its_equation(mask_net: MaskNet) -> None:
    x = torch.randn(5, 6)
    rows = []
    for event in x:
        mask = mask_net.mask.weight @ event + mask_net.mask.bias
        rows.append(mask_net.compress.weight @ (event * mask) + mask_net.compress.bias)
    torch.testing.assert_close(mask_net(x), torch.stack(rows))


def test_the_mask_is_of_the_second_order(mask_net: MaskNet) -> None:
    """Without the mask, or with one that does not depend on the event, the result would be affine in the event."""

    def curvature(x: Tensor) -> Tensor:
        return mask_net(x) - 2 * mask_net(torch.zeros_like(x)) + mask_net(-x)

    x = torch.randn(3, 6)
    assert curvature(x).abs().max() > 1e-2
    with torch.no_grad():
        mask_net.mask.weight.zero_()
    assert curvature(x).abs().max() < 1e-5
