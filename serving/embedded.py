"""The applications of `configs/embedded.yaml` as importable objects, for `serve build` and `serve run`.

serve build serving.embedded:policy_metaworld -o serve.yaml && serve deploy serve.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from serving.config import PolicyArgs
from serving.policy import build

if TYPE_CHECKING:
    from ray import serve

_CONFIG = Path(__file__).parent / "configs" / "embedded.yaml"


def _policy(name: str) -> serve.Application:
    applications = yaml.safe_load(_CONFIG.read_text("utf-8"))["applications"]
    entry = next(application for application in applications if application["name"] == name)
    return build(PolicyArgs.model_validate(entry["args"]))


policy_metaworld = _policy("policy-metaworld")
