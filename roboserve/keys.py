"""`roboserve keys new`: the secret is shown once, its hash goes to the key file."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError
from rich.console import Console

from serving.auth import KeyRing, Role, make_key

if TYPE_CHECKING:
    from pathlib import Path


def new(key_id: str, role: Role, file: Path, *, policy: str | None, days: int | None) -> int:
    """Make a key and add it to a key file, which only its owner may read."""
    console = Console(stderr=True)
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    try:
        key = make_key(key_id, role, policy=policy, expires=expires)
        records = yaml.safe_load(file.read_text("utf-8"))["keys"] if file.exists() else []
        if any(record["id"] == key_id for record in records):
            console.print(
                f"[red]{file} has a key named {key_id!r} already[/red]; take another name, and drop the old one later"
            )
            return 2
        records.append(key.record.model_dump(mode="json", exclude_none=True))
        _write_private(file, yaml.safe_dump({"keys": records}, sort_keys=False))
        KeyRing.load(file)
    except (ValidationError, ValueError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    console.print(
        f"Added {role} key {key_id!r} to {file}. This is its secret; it cannot be shown again:", highlight=False
    )
    print(key.secret)
    return 0


def _write_private(file: Path, text: str) -> None:
    fresh = file.with_suffix(".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as sink:
        sink.write(text)
    fresh.replace(file)
