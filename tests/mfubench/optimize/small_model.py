"""A small model as somebody else would bring it: attention that hands out weights nobody reads, norms, a looping Adam.

``build`` is what ``mfubench optimize`` is pointed at.
"""

import torch
from torch import Tensor, nn

ITEMS, WIDTH, HISTORY, BLOCKS = 2000, 32, 48, 6


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.ffn_norm = nn.LayerNorm(WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        mixed, _ = self.attention(normed, normed, normed)
        x = x + mixed
        return x + self.ffn(self.ffn_norm(x))


class SmallRanker(nn.Module):
    """Scores an item after a history of items."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(2 * WIDTH, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        x = self.items(history)
        for block in self.blocks:
            x = block(x)
        return self.head(torch.cat([self.norm(x.mean(1)), self.items(item)], dim=-1)).squeeze(-1)


def build():
    """The model, its batches, its loss and its optimizer, one parameter after the other."""

    def make_batch(batch_size, device):
        ids = torch.randint(ITEMS, (batch_size, HISTORY + 1), device=device)
        return {"history": ids[:, 1:], "item": ids[:, 0]}

    def loss(output, batch):
        clicked = (batch["item"] % 2).to(output.dtype)
        return nn.functional.binary_cross_entropy_with_logits(output, clicked)

    return SmallRanker(), make_batch, loss, lambda module: torch.optim.Adam(module.parameters(), lr=1e-3, foreach=False)
