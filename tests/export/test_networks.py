"""Trunks and heads: sizes that are known, keys that published checkpoints have, and what changes between training and not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from posekit.export.networks.local_head import LocalHead, TokenHead, places_of_map, unit_descriptors
from posekit.export.networks.patch_pnp import DropBlock, QueryPnP
from posekit.export.networks.resnet import LAYOUTS, resnet
from posekit.export.networks.unet import QueryNet
from posekit.export.networks.vit import VisionTransformer
from posekit.runtime.errors import RecipeError

NARROW = (16, 16, 8, 8, 8)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032), ("nano", 779_544)],
)
def test_resnets_have_the_known_sizes(name: str, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(resnet(name)) == expected


def test_vit_s16_has_the_known_size() -> None:
    with torch.device("meta"):
        assert parameters(VisionTransformer()) == 21_665_664


@pytest.mark.parametrize(("name", "keys"), [("resnet18", 120), ("resnet34", 216), ("resnet50", 318)])
def test_resnet_keys_are_torchvisions(name: str, keys: int) -> None:
    with torch.device("meta"):
        state = resnet(name).state_dict()
    assert len(state) == keys
    last = "layer1.0.conv3.weight" if LAYOUTS[name].bottleneck else "layer1.0.conv2.weight"
    named = {"conv1.weight", "bn1.running_var", last, "layer2.0.downsample.0.weight", "layer4.0.downsample.1.bias"}
    assert named <= set(state)
    assert ("layer1.0.downsample.0.weight" in state) == LAYOUTS[name].bottleneck


def test_vit_keys_are_dinos() -> None:
    state = VisionTransformer(image_px=32, dim=12, depth=1, heads=2).state_dict()
    block = {
        f"{m}.{p}"
        for m in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        for p in ("weight", "bias")
    }
    rest = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    assert set(state) == rest | {f"blocks.0.{key}" for key in block}


def test_a_classifier_in_the_checkpoint_is_dropped() -> None:
    published = {**resnet("nano").state_dict(), "fc.weight": torch.zeros(1000, 160), "fc.bias": torch.zeros(1000)}
    resnet("nano").load_state_dict(published, strict=True)
    assert "fc.weight" in published  # the caller's dict is left alone
    with pytest.raises(RuntimeError, match="classifier"):
        resnet("nano").load_state_dict({**published, "classifier.weight": torch.zeros(1)}, strict=True)


@pytest.mark.parametrize(
    ("strides", "max_pool", "reduction"),
    [
        ((1, 2, 2, 2), True, (2, 4, 8, 16, 32)),
        ((1, 2, 2, 1), False, (2, 2, 4, 8, 8)),
        ((1, 1, 1, 1), True, (2, 4, 4, 4, 4)),
    ],
)
def test_resnet_levels(strides: tuple[int, ...], max_pool: bool, reduction: tuple[int, ...]) -> None:
    trunk = resnet("nano", strides, max_pool, levels=(0, 1, 2, 3, 4)).eval()
    assert trunk.reduction == reduction
    features = trunk(torch.zeros(1, 3, 64, 64))
    assert [f.shape[1] for f in features] == list(trunk.channels)
    assert [64 // f.shape[2] for f in features] == list(reduction)


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"resnet152.*resnet18"):
        resnet("resnet152")


def test_patches_are_embedded_row_by_row() -> None:
    vit = VisionTransformer(image_px=32, patch_px=8, dim=12, depth=1, heads=2)
    image = torch.zeros(1, 3, 32, 32)
    image[:, :, 8:16, 24:32] = 1.0  # patch row 1, column 3
    changed = (vit.patch_embed(image) - vit.patch_embed(torch.zeros_like(image))).abs().sum(dim=2)[0]
    assert changed.nonzero().flatten().tolist() == [1 * 4 + 3]


def test_places_are_row_by_row() -> None:
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    assert places_of_map(maps).flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_attention_is_the_librarys() -> None:
    torch.manual_seed(0)
    attention = VisionTransformer(image_px=16, patch_px=8, dim=12, depth=1, heads=3).blocks[0].attn
    assert isinstance(attention, nn.Module)
    library = nn.MultiheadAttention(12, 3, batch_first=True)
    state = attention.state_dict()
    names = {
        "in_proj_weight": "qkv.weight",
        "in_proj_bias": "qkv.bias",
        "out_proj.weight": "proj.weight",
        "out_proj.bias": "proj.bias",
    }
    library.load_state_dict({theirs: state[ours] for theirs, ours in names.items()})
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(attention(x), library(x, x, x)[0], atol=1e-6, rtol=1e-5)


def test_descriptors_are_unit_vectors_in_float32() -> None:
    places = torch.randn(2, 7, 5).half()
    descriptors = unit_descriptors(places)
    assert descriptors.dtype == torch.float32
    torch.testing.assert_close(descriptors.norm(dim=2), torch.ones(2, 7))
    assert unit_descriptors(torch.zeros(1, 1, 4)).eq(0).all()


def test_local_head_keys_are_template_poses() -> None:
    assert set(LocalHead(8, 4, 2).state_dict()) == {"1.weight", "3.weight"}
    assert set(LocalHead(8, 4, 2, relu_first=False).state_dict()) == {"0.weight", "2.weight"}


def test_token_head_normalises_channels_over_all_tokens() -> None:
    head = TokenHead(6, 3).train()
    seen: list[Tensor] = []
    head.linear.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    head(3 * torch.randn(8, 10, 6) + 5)
    torch.testing.assert_close(seen[0].mean(dim=(0, 1)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].var(dim=(0, 1), correction=0), torch.ones(6), atol=1e-4, rtol=0)


def test_query_net_gives_full_resolution() -> None:
    net = QueryNet("nano", widths=NARROW).eval()
    mask_logit, queries = net(torch.zeros(2, 3, 64, 64))
    assert mask_logit.shape == (2, 1, 64, 64)
    assert queries.shape == (2, 12, 64, 64)


def test_class_indexed_queries_are_each_labels_own() -> None:
    torch.manual_seed(0)
    net = QueryNet("nano", query_channels=4, n_objects=3, widths=NARROW).eval()
    x = torch.randn(2, 3, 32, 32)
    maps = net.decoder(net.encoder(x))
    mask_logit, queries = net(x, torch.tensor([2, 0]))
    torch.testing.assert_close(mask_logit[:, 0], torch.stack([maps[0, 2], maps[1, 0]]))
    torch.testing.assert_close(queries, torch.stack([maps[0, 3 + 8 : 3 + 12], maps[1, 3:7]]))


def as_published_by_surfemb(net: QueryNet, decoder_index: int) -> dict[str, Tensor]:
    """That layout, written from the names of its modules: two decoders, the encoder listed a second time."""
    published: dict[str, Tensor] = {}
    for key, value in net.encoder.state_dict().items():
        stem = {"conv1": "layer0.0", "bn1": "layer0.1", "layer1": "layer1.1"}
        first, rest = key.split(".", 1)
        published[f"base_model.{key}"] = value
        published[f"{stem.get(first, first)}.{rest}"] = value
    published["base_model.fc.weight"] = torch.zeros(1000, 160)
    modules = {f"lateral.{i}": f"layer{i}_1x1" for i in range(5)}
    modules |= {"up.0": "conv_up3", "up.1": "conv_up2", "up.2": "conv_up1", "up.3": "conv_up0"}
    modules |= {"full": "conv_original_size", "out": "conv_last"}
    for key, value in net.decoder.state_dict().items():
        (ours,) = [m for m in modules if key.startswith(m + ".")]
        for index in (0, 1):
            theirs = f"decoder{index}_{modules[ours]}{key.removeprefix(ours)}"
            published[theirs] = value if index == decoder_index else torch.zeros_like(value)
    return published


@pytest.mark.parametrize("decoder_index", [0, 1])
def test_a_surfemb_checkpoint_fits(decoder_index: int) -> None:
    torch.manual_seed(0)
    net = QueryNet("nano", widths=NARROW).eval()
    loaded = QueryNet("nano", widths=NARROW, decoder_index=decoder_index).eval()
    loaded.load_state_dict(as_published_by_surfemb(net, decoder_index), strict=True)
    x = torch.randn(1, 3, 32, 32)
    for ours, theirs in zip(net(x), loaded(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_surfemb_checkpoint_with_something_unknown_is_refused() -> None:
    published = as_published_by_surfemb(QueryNet("nano", widths=NARROW), 0)
    with pytest.raises(RuntimeError, match="layer9"):
        QueryNet("nano", widths=NARROW).load_state_dict({**published, "layer9.weight": torch.zeros(1)}, strict=True)
    with pytest.raises(RuntimeError, match="Missing"):
        QueryNet("nano", widths=NARROW, decoder_index=7).load_state_dict(published, strict=True)


def test_the_full_size_query_decoder_is_surfembs() -> None:
    """Channels in front of each convolution, as published: 256+512, 128+512, 64+256, 64+256."""
    with torch.device("meta"):
        net = QueryNet()
    weights = dict(net.decoder.named_parameters())
    shapes = [tuple(weights[f"up.{i}.0.weight"].shape[:2]) for i in range(4)]
    assert shapes == [(512, 768), (256, 640), (256, 320), (128, 320)]
    assert tuple(weights["out.weight"].shape) == (13, 64, 1, 1)


def test_the_full_size_regressor_flattens_16384_numbers() -> None:
    with torch.device("meta"):
        pnp = QueryPnP()
    first = pnp.rotation[0]
    assert isinstance(first, nn.Linear)
    assert (first.in_features, first.out_features) == (256 * 8 * 8, 1200)


def test_a_new_regressor_starts_at_the_identity() -> None:
    pnp = QueryPnP(4, 32, (4, 4, 4, 4, 4), (8, 8), 4, n_objects=2).eval()
    r6, site = pnp(torch.randn(3, 4, 32, 32))
    assert (r6.shape, site.shape) == ((3, 12), (3, 6))
    torch.testing.assert_close(r6[:, 6:], torch.tensor([[1.0, 0, 0, 0, 1, 0]]).expand(3, -1), atol=0.2, rtol=0)


def test_nothing_is_dropped_at_inference() -> None:
    drop, x = DropBlock(5, 0.5), torch.ones(4, 3, 32, 32)
    assert drop.eval()(x) is x


@pytest.mark.parametrize(("side", "share"), [(20, 0.5), (5, 0.4), (1, 0.4), (64, 0.5)])
def test_drop_block_drops_squares_and_keeps_the_mean(side: int, share: float) -> None:
    torch.manual_seed(0)
    y = DropBlock(side, share).train()(torch.ones(64, 2, 32, 32))
    dropped = float((y == 0).float().mean())
    assert 0.4 * share < dropped < 1.1 * share
    torch.testing.assert_close(y.mean(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert y[:, 0].eq(y[:, 1]).all()
