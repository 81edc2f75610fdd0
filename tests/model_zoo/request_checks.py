"""What models that score a whole request must pass: which of its candidates and events a score may depend on."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mfu_models import ModelSpec
from mfu_models.batch import Batch
from mfu_models.common.embedding import FusedTable
from tests.kernels import oracles
from tests.model_zoo.zoo_checks import Lengths, batch_of, build

NO_NOISE = 1e-12  # fp64 rounding leaves less than this of what does not depend on the change


def model_and_batch(spec: ModelSpec, config: Any, lengths: Lengths) -> tuple[nn.Module, Batch]:
    """Both in fp64."""
    batch = batch_of(config, lengths)
    return build(spec, config, torch.float64).eval(), replace(batch, dense=batch.dense.double())


def check_one_by_one(spec: ModelSpec, config: Any, lengths: Lengths) -> None:
    """All candidates of a request together get the scores that each gets alone, in fp32."""
    model, batch = build(spec, config).eval(), batch_of(config, lengths)
    torch.testing.assert_close(model(batch), model(batch.per_impression()), rtol=1e-5, atol=1e-5)


def candidates_moved(spec: ModelSpec, config: Any, lengths: Lengths) -> Tensor:
    """bool [m, B, m]: changing candidate i of the first request moves which scores."""
    model, batch = model_and_batch(spec, config, lengths)
    before = model(batch)
    moved = []
    for i in range(batch.num_candidates):
        items, dense = batch.candidate_items.clone(), batch.dense.clone()
        items[i] = (items[i] + 1) % config.schema.item.vocab
        dense[i] += 1
        after = model(replace(batch, candidate_items=items, dense=dense))
        moved.append(((after - before).abs() > NO_NOISE).reshape(batch.num_requests, -1))
    return torch.stack(moved)


def with_event(batch: Batch, name: str, event: int) -> Batch:
    """The batch with another item at one packed event."""
    sequence = batch.sequences[name]
    items = sequence.item_ids.clone()
    items[event] += 1 if items[event] == 0 else -1
    sequences: Mapping[str, Any] = {**batch.sequences, name: replace(sequence, item_ids=items)}
    return replace(batch, sequences=sequences)


def outputs_of(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What ``module`` gave when ``run`` called it last."""
    seen: list[Tensor] = []
    with module.register_forward_hook(lambda _module, _args, output: seen.append(output)):
        run()
    return seen[-1]


def rows_moved(module: nn.Module, model: nn.Module, batch: Batch, other: Batch) -> list[int]:
    """Rows of ``module``'s output that differ between two batches."""
    before, after = (outputs_of(module, lambda b=b: model(b)) for b in (batch, other))
    return torch.nonzero((before - after).abs().amax(1) > NO_NOISE).flatten().tolist()


def rows_of(table: FusedTable, ids: Tensor) -> Tensor:
    """[F, width]: the embedding of each field of one sample, by hand."""
    rows = zip(table.offsets[:-1].tolist(), ids.reshape(-1).tolist(), strict=True)
    return torch.stack([table.weight[first + i] for first, i in rows])


def token(embedding: nn.Module, item: Tensor, sides: Tensor) -> Tensor:
    """[item | sides] of one event or candidate, by hand."""
    ids = [item.reshape(-1), sides.reshape(-1)]
    groups = ids if len(embedding.tables) == 2 else [torch.cat(ids)]
    return torch.cat([row for pair in zip(embedding.tables, groups, strict=True) for row in rows_of(*pair)])


def context(module: nn.Module, batch: Batch, candidate: int) -> Tensor:
    """What a candidate has beside its ids, by hand."""
    fields = rows_of(module.fields, batch.sparse[candidate])
    return mlp(module.dense, batch.dense[candidate]) + fields.sum(0) / len(fields) ** 0.5


def linear(module: nn.Module, x: Tensor) -> Tensor:
    return x @ module.weight.T if module.bias is None else x @ module.weight.T + module.bias


def mlp(module: nn.Module, x: Tensor) -> Tensor:
    for i, layer in enumerate(module.layers):
        x = linear(layer, x if i == 0 else nn.functional.gelu(x))
    return x


def norm(module: nn.Module, x: Tensor) -> Tensor:
    return oracles.layer_norm(x, module.weight, module.bias, eps=module.eps)


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, sees: Callable[[int, int], bool]) -> Tensor:
    """Attention of one row, query by query and head by head, over the keys that each ``sees``; zeros if none."""
    heads = [t.unflatten(-1, (num_heads, -1)) for t in (q, k, v)]
    out = q.new_zeros(len(q), v.shape[1]).unflatten(-1, (num_heads, -1))
    for i in range(len(q)):
        kept = [j for j in range(len(k)) if sees(i, j)]
        for h in range(num_heads if kept else 0):
            q_h, k_h, v_h = (t[:, h] for t in heads)
            out[i, h] = oracles.softmax(k_h[kept] @ q_h[i] / q_h.shape[1] ** 0.5) @ v_h[kept]
    return out.flatten(1)
