"""`roboserve status`: what is served, and how it is doing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from roboserve import state
from roboserve.credentials import api_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_DEFAULT_SERVER = "http://127.0.0.1:8000"


def run(server: str | None, key_file: Path | None, *, as_json: bool) -> int:
    """Print one row for each served model; exit status 1 when nothing answers."""
    console = Console()
    running = state.read()
    url = (server or (running.url if running else _DEFAULT_SERVER)).rstrip("/")
    key = api_key(key_file)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=5.0) as client:
            routes = client.get("/-/routes").raise_for_status().json()
            rows = [_row(client, prefix, name) for prefix, name in sorted(routes.items())]
    except httpx.HTTPError as error:
        console.print(
            f"[red]Nothing answers at {url}[/red] ({type(error).__name__}); start it with: roboserve up",
            highlight=False,
        )
        return 1
    if as_json:
        print(json.dumps({"url": url, "models": rows}, indent=2))
        return 0
    console.print(
        f"{url}  {'(pid ' + str(running.pid) + ', log ' + running.log + ')' if running else ''}", highlight=False
    )
    _print(console, rows)
    return 0


def _row(client: httpx.Client, prefix: str, name: str) -> dict[str, Any]:
    base = prefix.rstrip("/")
    row: dict[str, Any] = {"application": name, "route": prefix, "healthy": client.get(f"{base}/healthz").is_success}
    contract = client.get(f"{base}/contract")
    if contract.is_success:
        body = contract.json()
        row |= {"model": body["model"], "revision": body["revision"], "content_hash": body["content_hash"]}
    metrics = client.get(f"{base}/metrics")
    if metrics.is_success:
        row |= _figures(metrics.text)
    else:
        row["metrics"] = f"not shown (HTTP {metrics.status_code}: needs an admin key)"
    return row


def _figures(text: str) -> dict[str, Any]:
    """Read one replica's counters: sums over labels, and means from histogram sums and counts."""
    totals: dict[str, float] = {}
    errors: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
            code = sample.labels.get("code", "ok")
            if sample.name == "roboserve_requests_total" and code != "ok":
                errors[code] = errors.get(code, 0.0) + sample.value
    return {
        "sessions": int(totals.get("roboserve_sessions", 0)),
        "queue": int(totals.get("roboserve_queue_depth", 0)),
        "requests": int(totals.get("roboserve_requests_total", 0)),
        "mean_batch": _mean(totals, "roboserve_batch_size"),
        "mean_forward_ms": _mean(totals, "roboserve_forward_seconds", 1e3),
        "mean_request_ms": _mean(totals, "roboserve_request_seconds", 1e3),
        "deadline_misses": int(totals.get("roboserve_deadline_misses_total", 0)),
        "errors": {code: int(count) for code, count in errors.items()},
    }


def _mean(totals: Mapping[str, float], name: str, scale: float = 1.0) -> float | None:
    count = totals.get(f"{name}_count", 0.0)
    return round(totals[f"{name}_sum"] / count * scale, 2) if count else None


def _print(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))  # eighty columns are enough for it
    for name in ("route, model", "health"):
        table.add_column(name, no_wrap=True)
    for name in ("rev.", "sess.", "queue", "req.", "batch", "fwd. ms", "total ms"):
        table.add_column(name, justify="right")
    for row in rows:
        health = "[green]ok[/green]" if row["healthy"] else "[red]down[/red]"
        figures = [
            row.get(name)
            for name in ("sessions", "queue", "requests", "mean_batch", "mean_forward_ms", "mean_request_ms")
        ]
        revision, told = str(row.get("revision", "-")), ("-" if value is None else str(value) for value in figures)
        model = str(row.get("model", row["application"]))
        named = row["route"] if row["route"].endswith(f"/{model}") else f"{row['route']}  {model}"
        table.add_row(named, health, revision, *told)
    console.print(table)
    for row in rows:
        errors = ", ".join(f"{code} {count}" for code, count in row.get("errors", {}).items()) or row.get("metrics")
        if errors:
            console.print(f"{row.get('model', row['application'])}: {errors}", highlight=False)
