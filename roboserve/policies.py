"""`roboserve policies`: which revisions of the served policies there are, and which of them robots get."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console
from rich.table import Column, Table

from finetune.common.intervals import wilson
from models.revisions import BASE, RevisionStore, copied
from roboserve import state
from roboserve.credentials import api_key
from roboserve.revision_folders import ServedPolicy, configuration, revisions_folder, served_policies
from serving.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def show(config: Path | None, server: str | None, key_file: Path | None, *, as_json: bool) -> int:
    """Print the policies of a configuration with their revisions, and what a running server says of each."""
    try:
        platform = configuration(config)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    running = state.read()
    # one that runs in the foreground, or in a container, has left no note of itself
    url = server or (running.url if running else f"http://127.0.0.1:{platform.port}")
    found = [_policy(policy, _live(policy, url, api_key(key_file))) for policy in served_policies(platform)]
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print(Console(), found)
    return 0


def roll_back(name: str, revision: str | None, config: Path | None) -> int:
    """Go back to the current revision's parent, or to `revision`; sessions get it at their next reset."""

    def change(store: RevisionStore) -> str:
        return f"{name}: {store.roll_back(revision)} from the next reset on"

    return _changed(name, config, change)


def pin(name: str, revision: str | None, canary: float | None, config: Path | None) -> int:
    """Pin a revision; None serves the newest again."""

    def change(store: RevisionStore) -> str:
        store.pin(revision, canary=canary)
        share = f", {canary:.0%} of new sessions try the newest" if canary is not None else ""
        return f"{name}: {revision or 'the newest'} from the next reset on{share}"

    return _changed(name, config, change)


def publish(name: str, checkpoint: Path, outcome: tuple[int, int] | None, config: Path | None) -> int:
    """Add a checkpoint folder as a revision.

    Args:
        outcome: episodes that succeeded, and episodes, of its evaluation.
    """

    def change(store: RevisionStore) -> str:
        metrics: dict[str, float] = {}
        if outcome is not None:
            low, high = wilson(*outcome)
            metrics = {"success": outcome[0] / outcome[1], "success_low": low, "success_high": high}
            metrics["episodes"] = float(outcome[1])
        return f"{name}: {store.publish(copied(checkpoint), metrics=metrics, job='by hand').id}"

    return _changed(name, config, change)


def _changed(name: str, config: Path | None, change: Callable[[RevisionStore], str]) -> int:
    try:
        print(change(RevisionStore(revisions_folder(name, config))))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _live(policy: ServedPolicy, url: str, key: str | None) -> dict[str, Any] | None:
    """Return what the policy's server says of its revisions.

    None where none answers, or not to this key, or where something else does: the port may be another platform's.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        reply = httpx.get(f"{url.rstrip('/')}{policy.route.rstrip('/')}/revisions", headers=headers, timeout=5.0)
    except httpx.HTTPError:
        return None
    try:
        found: Any = reply.json() if reply.is_success else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("model") == policy.args.name else None


def _policy(policy: ServedPolicy, live: Mapping[str, Any] | None) -> dict[str, Any]:
    settings = policy.args.revisions
    standing = RevisionStore(Path(settings.folder)).read() if settings is not None else None
    told = {row["id"]: row for row in live["revisions"]} if live is not None else {}
    known = [{"id": BASE}, *(asdict(revision) for revision in standing.revisions)] if standing is not None else []
    rows = [{**row, **{name: told.get(row["id"], {}).get(name) for name in _LIVE}} for row in known]
    facts: dict[str, Any] = {"name": policy.args.name, "folder": None if settings is None else settings.folder}
    if settings is None or standing is None:
        return {**facts, "running": live is not None, "revisions": rows}
    share = standing.share_of_newest(settings.canary)
    pinned = standing.pin.revision
    current = standing.newest if share >= 1.0 else pinned or BASE
    served = {"current": live["current"], "newest": live["newest"]} if live is not None else {}
    facts |= {"current": current, "newest": standing.newest, "pinned": pinned, "share_of_newest": share, **served}
    return {**facts, "running": live is not None, "revisions": rows}


_LIVE = ("loaded", "sessions", "refused")


def _print(console: Console, policies: list[dict[str, Any]]) -> None:
    for policy in policies:
        if policy["folder"] is None:
            console.print(f"{policy['name']}: takes no revisions", highlight=False)
            continue
        share = policy["share_of_newest"]
        rest = f", {share:.0%} of new sessions get {policy['newest']}" if 0.0 < share < 1.0 else ""
        live = "" if policy["running"] else " (no server answers: sessions are not known)"
        console.print(f"{policy['name']}: current is {policy['current']}{rest}{live}", highlight=False)
        table = Table("", Column("revision", no_wrap=True), "sessions", "success", "parent", "job", "when", "")
        for row in policy["revisions"]:
            mark = "*" if row["id"] == policy["current"] else ""
            remark = (
                f"refused: {row['refused']}" if row["refused"] else "pinned" if row["id"] == policy["pinned"] else ""
            )
            sessions = "-" if row["sessions"] is None else str(row["sessions"])
            facts = [str(row.get(name, "-")) for name in ("parent", "job", "when")]
            table.add_row(mark, row["id"], sessions, _success(row.get("metrics", {})), *facts, remark)
        console.print(table)


def _success(metrics: Mapping[str, float]) -> str:
    if "success" not in metrics:
        return "-"
    if "success_low" not in metrics or "success_high" not in metrics:
        return f"{metrics['success']:.2f}"
    return f"{metrics['success']:.2f} ({metrics['success_low']:.2f} to {metrics['success_high']:.2f})"
