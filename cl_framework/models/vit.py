"""A small vision transformer with a head sized for all classes.

After Dosovitskiy et al. 2021, "An image is worth 16x16 words": patches, learnt positions, normalisation before each part, and for the
head a class token or the mean of the patches. Query, key, value and output are linear modules of their own, so that a method can add to
each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from cl_framework.benchmarks.base import Benchmark
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.models.resnet import channels_of
from cl_framework.registry import register_model


@dataclass(frozen=True)
class ViTOptions:
    patch: int = 4  # pixels a side, >= 1; divides the image's height and width
    depth: int = 6  # blocks, >= 1
    width: int = 192  # of a token, a multiple of heads
    heads: int = 3  # of attention, >= 1
    mlp_ratio: int = 4  # hidden units of a block's MLP, in widths, >= 1
    pool: str = "token"  # what the head reads: a class token, or the mean of the patches
    dropout: float = 0.0  # after attention and MLP, [0, 1)

    def __post_init__(self) -> None:
        for name in ("patch", "depth", "width", "heads", "mlp_ratio"):
            check_range(name, getattr(self, name), low=1)
        check_choice("pool", self.pool, ("token", "mean"))
        check_range("dropout", self.dropout, low=0, below=1)
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads={self.heads}, got {self.width}")


class Attention(nn.Module):
    """Self-attention over tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        query, key, value = (self._by_head(part(tokens)) for part in (self.query, self.key, self.value))
        mixed: Tensor = self.output(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return mixed

    def _by_head(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens)))
        return tokens + self.dropout(self.mlp(self.norm2(tokens)))


class VisionTransformer(nn.Module):
    """Embedding of patches, blocks, a norm, and a linear head on the class token or, where there is none, the mean of the patches."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, options: ViTOptions) -> None:
        super().__init__()
        channels, height, width = input_shape
        places = (height // options.patch) * (width // options.patch)
        self.embedding = nn.Conv2d(channels, options.width, options.patch, stride=options.patch)
        self.token = nn.Parameter(torch.empty(1, 1, options.width)) if options.pool == "token" else None
        self.positions = nn.Parameter(torch.empty(1, places + (self.token is not None), options.width))
        hidden = options.mlp_ratio * options.width
        self.blocks = nn.Sequential(*(Block(options.width, options.heads, hidden, options.dropout) for _ in range(options.depth)))
        self.norm = nn.LayerNorm(options.width)
        self.head = nn.Linear(options.width, num_classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        if self.token is not None:
            nn.init.trunc_normal_(self.token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def features(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): the class token, or the mean of the patches."""
        tokens = self.embedding(inputs).flatten(2).transpose(1, 2)  # (B, N, D)
        if self.token is not None:
            tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1)
        tokens = self.blocks(tokens + self.positions)
        hidden: Tensor = self.norm(tokens[:, 0] if self.token is not None else tokens.mean(1))
        return hidden

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        logits: Tensor = self.head(self.features(inputs))
        return logits


@register_model("vit", ViTOptions)
def vit(options: ViTOptions, benchmark: Benchmark) -> nn.Module:
    """Small vision transformer with separate query, key, value and output layers."""
    channels_of(benchmark, "vit")
    height, width = benchmark.input_shape[1:]
    if height % options.patch or width % options.patch:
        fitting = [patch for patch in range(1, min(height, width) + 1) if not height % patch and not width % patch]
        raise ConfigurationError(
            f"model.patch={options.patch} does not divide images of {height}x{width} pixels of benchmark {benchmark.name!r}. "
            f"Use one of {', '.join(map(str, fitting))}."
        )
    return VisionTransformer(benchmark.input_shape, benchmark.num_classes, options)
