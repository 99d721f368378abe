"""The Q-Former that turns a face embedding into tokens for every block's identity attention.

Layers as in BLIP-2's Q-Former (arXiv 2301.12597): learned queries attend to each other, then to the
face, then pass a feed-forward layer; normalised before each step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ft2.wan.block import attend, split_heads
from ft2.wan.spec import IdentitySpec


class QFormerLayer(nn.Module):
    """Self-attention of the queries, cross-attention to the face, feed-forward."""

    def __init__(self, dim: int, heads: int) -> None:
        """Create one layer; its feed-forward is four times as wide."""
        super().__init__()
        self.heads = heads
        self.before_self, self.before_cross = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.before_up = nn.LayerNorm(dim)
        self.self_qkv, self.self_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.cross_q, self.cross_kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.cross_out = nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, queries: Tensor, face: Tensor) -> Tensor:
        """Return the next queries [B, Q, D], given face tokens [B, T, D]."""
        query, key, value = self.self_qkv(self.before_self(queries)).chunk(3, -1)
        x = queries + self.self_out(self._attend(query, key, value))
        key, value = self.cross_kv(face).chunk(2, -1)
        x = x + self.cross_out(self._attend(self.cross_q(self.before_cross(x)), key, value))
        fed: Tensor = self.down(F.gelu(self.up(self.before_up(x))))
        return x + fed

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = (split_heads(part, self.heads) for part in (query, key, value))
        return attend(*parts)


class IdentityFormer(nn.Module):
    """A face embedding -> the identity tokens that all blocks attend to."""

    def __init__(self, spec: IdentitySpec) -> None:
        """Create the Q-Former; its blocks' keys and values are added by ``add_branch``."""
        super().__init__()
        self.face_tokens = spec.face_tokens
        self.face = nn.Linear(spec.features, spec.face_tokens * spec.dim)
        self.queries = nn.Parameter(torch.randn(spec.queries, spec.dim) * spec.dim**-0.5)
        self.layers = nn.ModuleList(
            QFormerLayer(spec.dim, spec.num_heads) for _ in range(spec.num_layers)
        )
        self.norm = nn.LayerNorm(spec.dim)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return identity tokens [B, Q, D] of face embeddings [B, E] of unit length."""
        unit = embedding * embedding.shape[1] ** 0.5
        face = self.face(unit.to(self.face.weight.dtype)).unflatten(1, (self.face_tokens, -1))
        queries = self.queries.expand(len(embedding), -1, -1)
        for layer in self.layers:
            queries = layer(queries, face)
        tokens: Tensor = self.norm(queries)
        return tokens
