"""SurfEmb's query network: a ResNet encoder and a U-Net decoder back to full resolution (Haugaard & Buch, CVPR 2022)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posekit.export.networks.gdr_heads import of_label
from posekit.export.networks.resnet import resnet

DECODER_WIDTHS = (512, 256, 256, 128, 64)


def conv_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2), nn.ReLU())


class UNetDecoder(nn.Module):
    """Five levels of features, fine to coarse from half resolution, to maps (B, out_channels, S, S).

    Every level passes a 1 x 1 convolution; from the coarsest on: double bilinearly, join the next finer, convolve.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(conv_relu(c, c, 1) for c in channels)
        below = [channels[-1], *widths[:-2]]
        finer = list(channels)[-2::-1]
        self.up = nn.ModuleList(
            conv_relu(a + b, width, 3) for a, b, width in zip(below, finer, widths[:-1], strict=True)
        )
        self.full = conv_relu(widths[-2], widths[-1], 3)
        self.out = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        laterals = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
        x = laterals.pop()
        for up in self.up:
            x = up(torch.cat([_doubled(x), laterals.pop()], dim=1))
        out: Tensor = self.out(self.full(_doubled(x)))
        return out


class QueryNet(nn.Module):
    """(B, 3, S, S) normalised -> mask logit (B, 1, S, S), queries (B, query_channels, S, S).

    n_objects > 1: class-indexed outputs, all mask logits first, then each object's queries (SurfEmb's single decoder).
    A SurfEmb checkpoint fits after its `cnn.` prefix is taken off; with one decoder per object, `decoder_index` says
    which one is read.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        query_channels: int = 12,
        n_objects: int = 1,
        widths: Sequence[int] = DECODER_WIDTHS,
        decoder_index: int = 0,
    ) -> None:
        super().__init__()
        self.n_objects, self.query_channels, self.decoder_index = n_objects, query_channels, decoder_index
        self.encoder = resnet(backbone, levels=(0, 1, 2, 3, 4))
        self.decoder = UNetDecoder(self.encoder.channels, widths, n_objects * (1 + query_channels))
        self.register_load_state_dict_pre_hook(_from_surfemb)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        maps = self.decoder(self.encoder(x))
        mask_logit = of_label(maps[:, : self.n_objects], label, self.n_objects)
        return mask_logit, of_label(maps[:, self.n_objects :], label, self.n_objects)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


# SurfEmb's module names -> ours. Its layer0 is the stem; its layer1 is [max-pool, ResNet layer1].
_ENCODER_KEYS = (
    ("layer0.0.", "encoder.conv1."),
    ("layer0.1.", "encoder.bn1."),
    ("layer1.1.", "encoder.layer1."),
    ("layer2.", "encoder.layer2."),
    ("layer3.", "encoder.layer3."),
    ("layer4.", "encoder.layer4."),
)
_DECODER_KEYS = (
    *((f"layer{level}_1x1.", f"lateral.{level}.") for level in range(5)),
    *((f"conv_up{level}.", f"up.{3 - level}.") for level in range(4)),
    ("conv_original_size.", "full."),
    ("conv_last.", "out."),
)


def _from_surfemb(module: QueryNet, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Rename the keys of a published query network in place; drop its encoder's second listing and other decoders."""
    if not any(key.startswith(f"{prefix}base_model.") for key in state_dict):
        return
    own = f"decoder{module.decoder_index}_"
    renames = [*_ENCODER_KEYS, *((own + theirs, "decoder." + ours) for theirs, ours in _DECODER_KEYS)]
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        renamed = [ours + name.removeprefix(theirs) for theirs, ours in renames if name.startswith(theirs)]
        if renamed:
            state_dict[prefix + renamed[0]] = state_dict.pop(key)
        elif re.match(r"base_model\.|decoder\d+_", name):
            del state_dict[key]
