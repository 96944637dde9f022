"""From a class's import path and a map of settings to a model: adding a model never edits a list."""

from __future__ import annotations

import importlib
import typing
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from serving.config import FactorySettings


def make_model(settings: FactorySettings, field: str) -> Any:
    """Make the model that a configuration names.

    Args:
        field: what the configuration calls it, for messages.

    Raises:
        ValueError: see `load_factory`.
    """
    factory, config = load_factory(settings, field)
    return factory(config)


def load_factory(settings: FactorySettings, field: str) -> tuple[Any, Any]:
    """Return a model's class and its checked configuration; nothing is loaded yet.

    Raises:
        ValueError: the class cannot be imported, or its configuration is wrong.
    """
    module_name, _, class_name = settings.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{field}.factory: {settings.factory!r} cannot be imported: {error}") from error
    unknown = _unknown_entries(factory.Config, settings.config)
    if unknown:
        raise ValueError(f"{field}.config of {settings.factory}: unknown entries {', '.join(unknown)}")
    try:
        config = TypeAdapter(factory.Config).validate_python(settings.config)
    except ValidationError as error:
        where = "; ".join(".".join(map(str, item["loc"])) + ": " + item["msg"] for item in error.errors())
        raise ValueError(f"{field}.config of {settings.factory}: {where}") from error
    return factory, config


def _unknown_entries(cls: Any, value: Any, prefix: str = "") -> list[str]:
    """Return entries, at any depth, that a dataclass does not have; pydantic would let them pass unread."""
    if not is_dataclass(cls) or not isinstance(value, dict):
        return []
    hints = typing.get_type_hints(cls)
    names = {item.name for item in fields(cls)}
    found = [f"{prefix}{name} (known are {', '.join(sorted(names))})" for name in value if name not in names]
    for name in names & set(value):
        found += _unknown_entries(hints[name], value[name], f"{prefix}{name}.")
    return found
