"""A model of your own: a small SASRec, which scores the item that came next and one that was drawn at random.

`mfubench` needs one function, here `build`. Run it in the folder where imports start, here the repository's root:

    mfubench profile examples.own_model:build --batch-size 64
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_ITEMS, LENGTH, DIM, HEADS, BLOCKS = 20_000, 50, 64, 4, 2


class Block(nn.Module):
    """Causal attention, then a feed-forward network, each with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.ffn = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.ReLU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [batch, heads, length, head dim]
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.ffn(self.ffn_norm(x))
        return x


class SASRec(nn.Module):
    """Kang and McAuley, Self-Attentive Sequential Recommendation (arXiv 1808.09781), without its dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(NUM_ITEMS, DIM, sparse=True)  # the gradient has rows for the batch's items alone
        self.positions = nn.Embedding(LENGTH, DIM)
        self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(BLOCKS))), nn.LayerNorm(DIM)

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        """Logits ``[batch, length, 2]`` of ``candidates [batch, length, 2]``, given ``history [batch, length]``."""
        x = self.norm(self.blocks(self.items(history) + self.positions.weight))
        logits: Tensor = (self.items(candidates) * x.unsqueeze(2)).sum(-1)
        return logits


def make_batch(batch_size: int, device: torch.device) -> dict[str, Tensor]:
    """The module's arguments: a dict of keyword arguments, or a tuple of positional ones.

    It is called before anything is timed. The random numbers of torch, random and numpy.random are seeded. Batches of
    your own log are better: what is measured holds for the shapes, lengths and ids that it was measured with.
    """
    return {
        "history": torch.randint(NUM_ITEMS, (batch_size, LENGTH), device=device),
        "candidates": torch.randint(NUM_ITEMS, (batch_size, LENGTH, 2), device=device),
    }


def loss(output: Tensor, _batch: dict[str, Tensor]) -> Tensor:
    """A scalar, of what the module returned and the batch that it was given."""
    came_next = torch.tensor([1.0, 0.0], device=output.device).expand_as(output)
    return F.binary_cross_entropy_with_logits(output.float(), came_next)


def optimizers(module: nn.Module) -> list[torch.optim.Optimizer]:
    """One torch optimizer, or a list of them. The module is on its device when this is called."""
    dense = [parameter for name, parameter in module.named_parameters() if name != "items.weight"]
    tables = [module.get_parameter("items.weight")]
    return [torch.optim.AdamW(dense, lr=1e-3, fused=True), torch.optim.SparseAdam(tables, lr=1e-3)]


def build() -> tuple[nn.Module, Callable[..., object], Callable[..., Tensor], Callable[..., object]]:
    """The module and what a step needs beside it; the optimizers, or the loss and they, may be left out."""
    return SASRec(), make_batch, loss, optimizers
