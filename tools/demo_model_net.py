"""The demo model's network: llama.cpp's llama graph, written in PyTorch, small enough to train on a laptop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class NetShape:
    """Every number that decides a tensor's size; rows are multiples of 256 so that K-quants fit."""

    vocab_count: int
    layer_count: int = 8
    embedding_size: int = 256
    head_count: int = 8
    kv_head_count: int = 4
    feed_forward_size: int = 512
    context_count: int = 1024
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        """Numbers in one attention head."""
        return self.embedding_size // self.head_count


def rope_table(shape: NetShape) -> tuple[Tensor, Tensor]:
    """Cosine and sine for every position: two [context, head_size / 2] tensors."""
    half = torch.arange(0, shape.head_size, 2, dtype=torch.float32)
    angle = torch.outer(
        torch.arange(shape.context_count).float(), shape.rope_base ** (-half / shape.head_size)
    )
    return torch.cos(angle), torch.sin(angle)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbours (0,1), (2,3)... as llama.cpp's NORM rope does; x: [B, H, S, head_size]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Block(nn.Module):
    """One decoder layer: attention and a gated feed-forward, each behind an RMS norm."""

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        self.shape = shape
        d, kv = shape.embedding_size, shape.kv_head_count * shape.head_size
        self.attn_norm = nn.RMSNorm(d, eps=shape.norm_epsilon)
        self.attn_q = nn.Linear(d, d, bias=False)
        self.attn_k = nn.Linear(d, kv, bias=False)
        self.attn_v = nn.Linear(d, kv, bias=False)
        self.attn_output = nn.Linear(d, d, bias=False)
        self.ffn_norm = nn.RMSNorm(d, eps=shape.norm_epsilon)
        self.ffn_gate = nn.Linear(d, shape.feed_forward_size, bias=False)
        self.ffn_up = nn.Linear(d, shape.feed_forward_size, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward_size, d, bias=False)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """h: [B, S, D] in and out."""
        b, s, d = h.shape
        size = self.shape.head_size
        x = self.attn_norm(h)
        q = rotate_pairs(self.attn_q(x).view(b, s, -1, size).transpose(1, 2), cos, sin)
        k = rotate_pairs(self.attn_k(x).view(b, s, -1, size).transpose(1, 2), cos, sin)
        v = self.attn_v(x).view(b, s, -1, size).transpose(1, 2)
        share = self.shape.head_count // self.shape.kv_head_count
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.attn_output(mixed.transpose(1, 2).reshape(b, s, d))
        x = self.ffn_norm(h)
        return h + self.ffn_down(functional.silu(self.ffn_gate(x)) * self.ffn_up(x))


class DemoNet(nn.Module):
    """Tokens in, logits out; input and output embeddings share one matrix while training."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: NetShape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab_count, shape.embedding_size)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layer_count))
        self.output_norm = nn.RMSNorm(shape.embedding_size, eps=shape.norm_epsilon)
        cos, sin = rope_table(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
                spread = 0.02 / math.sqrt(2 * shape.layer_count) if residual else 0.02
                nn.init.normal_(weight, std=spread)

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: [B, S] -> normalised hidden states [B, S, D]."""
        count = tokens.shape[1]
        cos, sin = self.cos[:count], self.sin[:count]
        h: Tensor = self.token_embd(tokens)
        for block in self.blk:
            h = block(h, cos, sin)
        normed: Tensor = self.output_norm(h)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [..., D] -> [..., V]."""
        return functional.linear(hidden, self.token_embd.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B, S] -> logits [B, S, V]."""
        return self.logits(self.hidden(tokens))
