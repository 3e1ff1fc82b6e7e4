"""Where each key of a recipe has an effect. A key that is given where it has none is refused: a wish that nobody heard.

A record's field that is no row below has an effect wherever its record has one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posekit.export.systems import system_named
from posekit.runtime.detector import FAMILIES

RANDOM = "random"


@dataclass(frozen=True)
class Only:
    """where: in words, after "only".  applies: the record that has the key, and the whole recipe -> whether it does."""

    where: str
    applies: Callable[[Any, Any], bool]


def _path_kinds(entry: Any) -> set[str]:
    """Of the paths that a network makes."""
    from posekit.export.networks.own import own_paths

    if entry.system is None and entry.role is None:  # refused for that reason
        return set()
    plans = own_paths(entry.role, None) if entry.system is None else system_named(entry.system).paths
    return {plan.kind for plan in plans.values()}


def _from_file(entry: Any, recipe: Any) -> bool:
    return entry.checkpoint not in (None, RANDOM)


def _has_variants(_: Any, recipe: Any) -> bool:
    return bool(recipe.precision.variants)


def _suppresses(entry: Any, recipe: Any) -> bool:
    return entry.family not in FAMILIES or FAMILIES[entry.family].suppress


def _has_border(entry: Any, recipe: Any) -> bool:
    return entry.family not in FAMILIES or FAMILIES[entry.family].placement != "stretch"


RANDOM_WEIGHTS = Only('with checkpoint = "random"', lambda entry, _: entry.checkpoint == RANDOM)
FROM_FILE = Only("with a checkpoint that is a file", _from_file)
TORCH_DETECTOR = Only("with system or network, not with onnx", lambda entry, _: entry.onnx is None)
OF_BANKS = Only(
    "with a network that has a template bank, an embedder",
    lambda _, recipe: any("bank" in _path_kinds(entry) for entry in recipe.networks),
)
OF_DETECTORS = Only("with a [detector]", lambda _, recipe: recipe.detector is not None)
CROPS_HEARD = "with precision.variants, which are calibrated and verified on such crops"

KEYS: dict[str, Only] = {
    "NetworkRecipe.seed": RANDOM_WEIGHTS,
    "NetworkRecipe.checkpoint_key": FROM_FILE,
    "NetworkRecipe.checkpoint_prefix": FROM_FILE,
    "NetworkRecipe.bank": Only(
        "for a network with a template bank, an embedder", lambda entry, _: "bank" in _path_kinds(entry)
    ),
    "NetworkRecipe.false_accept_rate": Only(
        "for a network with a template bank, an embedder", lambda entry, _: "bank" in _path_kinds(entry)
    ),
    "NetworkRecipe.solver": Only(
        "for a network with a correspondence path", lambda entry, _: "correspondence" in _path_kinds(entry)
    ),
    "NetworkRecipe.role": Only("for the user's own network", lambda entry, _: entry.system is None),
    "NetworkRecipe.feeds": Only(
        "for the user's own network of role pose or correspondence",
        lambda entry, _: entry.system is None and entry.role != "embedder",
    ),
    "NetworkRecipe.threshold": Only(
        "for the user's own network of role embedder",
        lambda entry, _: entry.system is None and entry.role == "embedder",
    ),
    "NetworkRecipe.trunk": Only(
        "for the user's own network, with precision.variants",
        lambda entry, recipe: entry.system is None and bool(recipe.precision.variants),
    ),
    "BankRecipe.in_plane": Only("with in_plane_steps above 1", lambda bank, _: bank.in_plane_steps > 1),
    "CropPreset.pad": Only('with rule "square" or "dzi"', lambda crop, _: crop.rule in ("square", "dzi")),
    "CropPreset.border_px": Only('with rule "border"', lambda crop, _: crop.rule == "border"),
    "DetectorRecipe.checkpoint": TORCH_DETECTOR,
    "DetectorRecipe.seed": Only(
        'with system or network and checkpoint = "random"',
        lambda entry, _: entry.onnx is None and entry.checkpoint == RANDOM,
    ),
    "DetectorRecipe.checkpoint_key": Only(
        "with system or network and a checkpoint that is a file",
        lambda entry, recipe: entry.onnx is None and _from_file(entry, recipe),
    ),
    "DetectorRecipe.checkpoint_prefix": Only(
        "with system or network and a checkpoint that is a file",
        lambda entry, recipe: entry.onnx is None and _from_file(entry, recipe),
    ),
    "DetectorRecipe.options": TORCH_DETECTOR,
    "DetectorRecipe.normalise": Only(
        "with system or network: an onnx file's family says what its pixels are", TORCH_DETECTOR.applies
    ),
    "DetectorRecipe.input_wh_px": Only(
        "with network or onnx: a system's size is one of its options", lambda entry, _: entry.system is None
    ),
    "DetectorRecipe.letterbox_value": Only(
        f"for families whose letterbox has a border, not for {', '.join(n for n, row in FAMILIES.items() if row.placement == 'stretch')}",
        _has_border,
    ),
    "DetectorRecipe.iou_threshold": Only(
        f"for families that suppress overlaps: {', '.join(n for n, row in FAMILIES.items() if row.suppress)}",
        _suppresses,
    ),
    "PrecisionRecipe.method": Only(
        "with int8 among precision.variants", lambda precision, _: "int8" in precision.variants
    ),
    "ExportRecipe.calibration": Only(
        f'{CROPS_HEARD}, or with engines.crops_per_pass = "measured", or for the score thresholds of a bank',
        lambda recipe, _: (
            bool(recipe.precision.variants)
            or recipe.engines.crops_per_pass == "measured"
            or any("bank" in _path_kinds(entry) for entry in recipe.networks)
        ),
    ),
    "ExportRecipe.verification": Only(CROPS_HEARD, _has_variants),
    "ExportRecipe.gates": Only("with precision.variants, which are judged by them", _has_variants),
    "Gates.cosine_p1": OF_BANKS,
    "Gates.top1": OF_BANKS,
    **{
        f"Gates.{name}": OF_DETECTORS
        for name in ("box_lost", "box_iou_p5", "box_score_p95", "box_recall_drop", "box_recall_min")
    },
    "Gates.output_p95": Only(
        'with checkpoint = "random", which it judges in place of poses and boxes',
        lambda _, recipe: any(
            entry is not None and entry.checkpoint == RANDOM for entry in (*recipe.networks, recipe.detector)
        ),
    ),
}


def keys_without_effect(recipe: Any, given: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
    """Of a whole recipe; given: its keys as they were written. Rows (where, got, expected)."""
    yield from _within(recipe, given, recipe, "recipe")


def _within(record: Any, given: Mapping[str, Any], recipe: Any, where: str) -> Iterator[tuple[str, object, str]]:
    for key, written in given.items():
        rule = KEYS.get(f"{type(record).__name__}.{key}")
        if rule and not rule.applies(record, recipe):
            yield f"{where}.{key}", "a key that has no effect here", f"it only {rule.where}"
        for part, child, child_given in _records(getattr(record, key), written):
            yield from _within(child, child_given, recipe, f"{where}.{key}{part}")


def _records(value: Any, written: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """The records that a key holds, with what was written of each."""
    if dataclasses.is_dataclass(value) and isinstance(written, Mapping):
        yield "", value, written
    elif isinstance(value, tuple) and isinstance(written, Sequence):
        for one, of_one in zip(value, written, strict=True):
            if dataclasses.is_dataclass(one):
                yield f".{getattr(one, 'name', '')}".rstrip("."), one, of_one
