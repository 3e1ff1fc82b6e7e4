"""Names and strings of a damaged file: protobuf hands out bytes that are no text, at which everything else stumbles."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import ModelProto


def readable(model: ModelProto) -> tuple[ModelProto, int]:
    """(the model, 0), or a copy with replacement characters and the number of texts that were not UTF-8."""
    if not _repaired(model, write=False):
        return model, 0
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy, _repaired(copy, write=True)


def _repaired(message: Any, write: bool) -> int:
    """How many texts of a message and of those inside it are not UTF-8. protobuf bounds the depth when it parses."""
    count = 0
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING:
            count += _repaired_text(message, field.name, write)
        elif field.type == field.TYPE_MESSAGE:
            value = getattr(message, field.name)
            inner = value if not isinstance(value, Message) else [value] if message.HasField(field.name) else []
            count += sum(_repaired(part, write) for part in inner)
    return count


def _repaired_text(message: Any, name: str, write: bool) -> int:
    value = getattr(message, name)
    if isinstance(value, str):
        return 0
    if isinstance(value, bytes):
        if write:
            setattr(message, name, value.decode(errors="replace"))
        return 1
    wrong = [i for i, text in enumerate(value) if isinstance(text, bytes)]
    if write and wrong:
        value[:] = [text.decode(errors="replace") if isinstance(text, bytes) else text for text in value]
    return len(wrong)
