"""The applications of `configs/embedded.yaml` as importable objects, for `serve build` and `serve run`.

serve build serving.embedded:policy_metaworld serving.embedded:reward_robometer -o serve.yaml && serve deploy serve.yaml

Preference labels and paths ask the engine of the application `vlm`, so they are built together with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from serving import path, policy, preference, reward
from serving.vlm import app as vlm_app

if TYPE_CHECKING:
    from ray import serve

_CONFIG = Path(__file__).parent / "configs" / "embedded.yaml"


def _args(name: str) -> Any:
    applications = yaml.safe_load(_CONFIG.read_text("utf-8"))["applications"]
    return next(application["args"] for application in applications if application["name"] == name)


policy_metaworld: serve.Application = policy.build(_args("policy-metaworld"))
reward_robometer: serve.Application = reward.build(_args("reward-robometer"))
vlm: serve.Application = vlm_app.build(_args("vlm"))
preference_metaworld: serve.Application = preference.build(_args("preference-metaworld"))
path_metaworld: serve.Application = path.build(_args("path-metaworld"))
