"""The names that each TensorRT version has, and the real TensorRT-RTX seen through the names of another version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from posekit.runtime.engines.api import API, FLAVOURS, UNLISTED, tensorrt_module

# Recorded by importing NVIDIA's bindings: version -> class -> names, or enumeration -> name -> integer.
TABLES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "golden/trt_api_names.json").read_text())
RTX = next(version for version in TABLES if version.startswith("rtx-"))
TENSORRT = tuple(version for version in TABLES if version != RTX)
NO_OP = "ignore:.*Timing cache operations are no-ops:DeprecationWarning"  # of TensorRT-RTX, for pytest
RAW = ("IHostMemory", "ILogger", "IProgressMonitor")  # handed on as they are, like members of enumerations


class Seen:
    """An object of the bindings of which only the names in `allowed` can be used; others raise, as on that version."""

    def __init__(self, value: Any, allowed: Mapping[str, frozenset[str]], changes: Mapping[str, Any]) -> None:
        vars(self).update(value=value, allowed=allowed, changes=changes)

    def __getattr__(self, name: str) -> Any:
        value, kind = self.value, _kind(self.value)
        if name.startswith("__"):
            return getattr(value, name)
        if f"{kind}.{name}" in self.changes:
            return partial(self.changes[f"{kind}.{name}"], value)
        if name not in self.allowed.get(kind, frozenset()):
            raise AttributeError(f"{kind}.{name} is not in API or not in this version")
        return self._seen(getattr(value, name))

    def __setattr__(self, name: str, value: Any) -> None:
        kind = _kind(self.value)
        if name not in self.allowed.get(kind, frozenset()):
            raise AttributeError(f"{kind}.{name} is not in API or not in this version")
        setattr(self.value, name, _bare(value))

    def __call__(self, *arguments: Any) -> Any:
        return self._seen(self.value(*map(_bare, arguments)))

    def _seen(self, value: Any) -> Any:
        if hasattr(type(value), "__members__") or _kind(value) in RAW:
            return value
        return Seen(value, self.allowed, self.changes) if callable(value) or _kind(value) in self.allowed else value


def _kind(value: Any) -> str:
    return str(value.__name__ if isinstance(value, type) else type(value).__name__)


def _bare(value: Any) -> Any:
    return value.value if isinstance(value, Seen) else value


class OtherVersion:
    """TensorRT-RTX's module as if it were TensorRT of `version`.

    changes: "Class.name" -> a function of the real object and the arguments, instead of that method.
    """

    def __init__(self, module: Any, version: str, changes: Mapping[str, Any]) -> None:
        self.__name__, self.__version__ = "tensorrt", version
        self.__spec__ = ModuleSpec("tensorrt", None)
        allowed = {kind: frozenset(names) & frozenset(TABLES[version].get(kind, ())) for kind, names in API.items()}
        allowed |= {"INetworkDefinition": frozenset(), **{kind: frozenset(names) for kind, names in UNLISTED.items()}}
        self._module, self._allowed, self._changes = module, allowed, changes

    def __getattr__(self, name: str) -> Any:
        if name not in self._allowed:
            raise AttributeError(f"{name} is not in API")
        value = getattr(self._module, name)
        return value if name in RAW else Seen(value, self._allowed, self._changes)


INSPECTED = json.dumps(
    {"Layers": [{"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": []}], "Bindings": ["crops"]}
)


def other_version(version: str) -> OtherVersion:
    """TensorRT-RTX under that version's names, with its plan header, and an engine that can be inspected."""
    inspector = SimpleNamespace(get_engine_information=lambda _: INSPECTED)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)

    def build(builder: Any, network: Any, config: Any) -> bytes:
        plan = bytearray(builder.build_serialized_network(network.value, config.value))
        plan[:4] = FLAVOURS["tensorrt"].plan_tag
        plan[24:28] = bytes((*map(int, version.split(".")), 0)[:4])
        return bytes(plan)

    changes = {
        "Builder.build_serialized_network": build,
        "Runtime.deserialize_cuda_engine": lambda runtime, plan: engine,
    }
    return OtherVersion(tensorrt_module("rtx"), version, changes)
