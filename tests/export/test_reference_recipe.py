"""reference.toml builds exactly the networks that the training scripts train, for crops that are cut alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from posekit.export import reference
from posekit.export.networks.anchor_free import AnchorFree
from posekit.export.recipe import ExportRecipe, recipe_from_toml
from posekit.export.reference import train_embedder, train_gdr
from posekit.export.reference.objects import reference_objects
from posekit.export.reference.train_detector import INPUT_WH_PX
from posekit.export.systems import system_named
from posekit.export.systems.gdr_net import GdrNet
from posekit.export.systems.template_pose import TemplatePose
from posekit.runtime.crop import CropPreset

TRAINED: dict[str, tuple[Callable[[], nn.Module], CropPreset]] = {
    "gdr": (lambda: GdrNet(**train_gdr.OPTIONS), train_gdr.CROP),
    "bank": (lambda: TemplatePose(**train_embedder.OPTIONS), train_embedder.CROP),
}


@pytest.fixture(scope="module")
def recipe() -> ExportRecipe:
    return recipe_from_toml(Path(str(reference.__file__)).with_name("reference.toml"))


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def test_the_networks_are_those_that_are_trained(recipe: ExportRecipe) -> None:
    assert [entry.name for entry in recipe.networks] == list(TRAINED)
    for entry in recipe.networks:
        assert entry.system is not None
        make, crop = TRAINED[entry.name]
        trained, exported = make(), system_named(entry.system).network(**entry.options)
        assert type(exported) is type(trained)
        assert shapes(exported) == shapes(trained)
        assert entry.crop == crop


def test_the_detector_is_the_one_that_is_trained(recipe: ExportRecipe) -> None:
    assert recipe.detector is not None
    assert recipe.detector.system is not None
    exported = system_named(recipe.detector.system).network(**recipe.detector.options)
    trained = AnchorFree(classes=len(reference_objects()), input_wh_px=INPUT_WH_PX)
    assert type(exported) is AnchorFree
    assert shapes(exported) == shapes(trained)
    assert exported.grid_hw == trained.grid_hw


def test_the_objects_are_the_reference_objects_in_order_of_their_ids(recipe: ExportRecipe) -> None:
    assert [(o.id, o.name) for o in recipe.objects] == [(i, o.name) for i, o in sorted(reference_objects().items())]
