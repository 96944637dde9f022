"""API keys: who may call what. Keys are random, stored as SHA-256 only, and compared in constant time.

A key has 256 random bits, so a plain SHA-256 at rest cannot be searched, and no slow hash is needed on the
request path.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from clients.errors import RoboserveError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Role = Literal["robot", "job", "admin"]
KEY_PREFIX = "rsk_"
_KEY_ID = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_JOB_FAMILIES = ("reward", "preference", "path", "vlm")


class KeyRecord(BaseModel):
    """One key as it stands in the key file.

    A `robot` key drives one policy, a `job` key asks for rewards, preferences, paths and answers, an `admin` key may do
    all, the operator's routes included. Two live keys of one owner make rotation without a gap; `expires` ends one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=_KEY_ID, description="name of the key, as logs and metrics show it")
    role: Role
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    policy: str | None = Field(default=None, description="the one policy of a robot key")
    expires: AwareDatetime | None = None

    @model_validator(mode="after")
    def _robot_names_its_policy(self) -> KeyRecord:
        if (self.role == "robot") != (self.policy is not None):
            raise ValueError("policy: a robot key names one policy, and only a robot key does")
        return self


class KeyFile(BaseModel):
    """The key file: `keys:` and a list of records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[KeyRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who is calling. `record` is None for an anonymous caller on an open, loopback-only server."""

    id: str
    record: KeyRecord | None

    def allows(self, family: str, model: str) -> bool:
        """Whether this caller may use a model of a family ("policy", "reward", "preference", "path", "vlm")."""
        if self.record is None or self.record.role == "admin":
            return True
        if self.record.role == "robot":
            return family == "policy" and model == self.record.policy
        return family in _JOB_FAMILIES

    def require_unexpired(self) -> None:
        """Refuse a key whose time is over, also in the middle of a session.

        Raises:
            RoboserveError: `unauthenticated`.
        """
        expires = None if self.record is None else self.record.expires
        if expires is not None and expires <= datetime.now(UTC):
            raise RoboserveError("unauthenticated", f"authorization: key {self.id!r} expired on {expires:%Y-%m-%d}")

    @property
    def operates(self) -> bool:
        """Whether this caller may read the operator's routes (metrics)."""
        return self.record is None or self.record.role == "admin"


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key just made: `secret` is shown once and never stored."""

    secret: str
    record: KeyRecord


def make_key(key_id: str, role: Role, *, policy: str | None = None, expires: datetime | None = None) -> NewKey:
    """Draw a new key.

    Raises:
        pydantic.ValidationError: a robot key without a policy, or a policy on another role.
    """
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    record = KeyRecord(id=key_id, role=role, sha256=_digest(secret), policy=policy, expires=expires)
    return NewKey(secret=secret, record=record)


class KeyRing:
    """The keys of one server.

    Args:
        records: accepted keys; none makes the server open, to loopback peers only.
    """

    def __init__(self, records: tuple[KeyRecord, ...] = ()) -> None:
        self._records = records

    @classmethod
    def load(cls, path: Path | None) -> KeyRing:
        """Read a key file; no path gives an open ring.

        Raises:
            ValueError: the file is missing, empty or wrong; the message names the entry, never a hash.
        """
        if path is None:
            return cls()
        try:
            parsed = KeyFile.model_validate(yaml.safe_load(path.read_text("utf-8")))
        except OSError as error:
            raise ValueError(f"key file {path.name}: cannot be read ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"key file {path.name}: is not YAML text") from error
        except ValidationError as error:
            where = "; ".join(".".join(map(str, item["loc"])) + ": " + item["msg"] for item in error.errors())
            raise ValueError(f"key file {path.name}: {where}") from error
        if not parsed.keys:
            raise ValueError(f"key file {path.name}: has no keys; leave the setting out to serve loopback only")
        return cls(parsed.keys)

    @property
    def open(self) -> bool:
        """Whether no keys are configured."""
        return not self._records

    def identify(self, headers: Mapping[bytes, bytes], peer: str | None) -> Principal:
        """Tell who is calling, from `Authorization: Bearer KEY` (or openpi's `Api-Key KEY`).

        Raises:
            RoboserveError: `unauthenticated`, or `forbidden` for a peer beyond loopback while no keys are configured.
        """
        if self.open:
            if not is_loopback(peer):
                raise RoboserveError("forbidden", "no API keys are configured, so only loopback peers are served")
            _refuse_foreign_pages(headers)
            return Principal(id="loopback", record=None)
        scheme, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() not in ("bearer", "api-key") or not secret:
            raise RoboserveError("unauthenticated", "authorization: send 'Authorization: Bearer KEY'")
        record = self._find(_digest(secret.strip()))
        if record is None:
            raise RoboserveError("unauthenticated", "authorization: this key is not known")
        principal = Principal(id=record.id, record=record)
        principal.require_unexpired()
        return principal

    def _find(self, digest: str) -> KeyRecord | None:
        """Compare with every key, so that time does not tell which one was close."""
        found = None
        for record in self._records:
            if hmac.compare_digest(record.sha256, digest):
                found = record
        return found


def _refuse_foreign_pages(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a web page of elsewhere that a browser on this machine shows: it comes from loopback, and it says so.

    Raises:
        RoboserveError: `forbidden`.
    """
    origin = headers.get(b"origin")
    if origin is None:
        return
    try:
        host = urlsplit(origin.decode("latin-1")).hostname
    except ValueError:
        host = None
    if not is_loopback(host):
        raise RoboserveError("forbidden", "origin: no API keys are configured, so pages of other hosts are refused")


def is_loopback(host: str | None) -> bool:
    """Whether an address or host name stays on this machine."""
    if host is None:
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
