"""Vision transformer (Dosovitskiy et al., ICLR 2021), with the state-dict keys of DINO and timm so that theirs fit.

Pre-norm blocks, query-key-value bias, exact GELU, LayerNorm epsilon 1e-6, learned positions, one CLS token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention, (B, tokens, dim) -> the same."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(2, (3 * self.heads, -1)).transpose(1, 2).chunk(3, dim=1)
        )  # (B, heads, tokens, -1)
        # Scaled before the product, softmax in float32: safe when the trunk is half precision.
        attention = F.softmax(((q * self.scale) @ k.transpose(-2, -1)).float(), dim=-1).to(v.dtype)
        out: Tensor = self.proj((attention @ v).transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPSILON), nn.LayerNorm(dim, eps=EPSILON)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """(B, 3, S, S) -> (B, patches, dim), patches row by row."""

    def __init__(self, patch_px: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_px, stride=patch_px)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)
        return out


class VisionTransformer(nn.Module):
    """(B, 3, S, S) -> all tokens after the final LayerNorm, (B, 1 + (S / patch)^2, dim), CLS first.

    The defaults are ViT-S/16 at 224 px. The size is fixed: positions are never interpolated.
    """

    def __init__(
        self,
        image_px: int = 224,
        patch_px: int = 16,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        self.image_px, self.dim, self.grid = image_px, dim, image_px // patch_px
        self.patch_embed = PatchEmbed(patch_px, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid**2, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPSILON)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out
