"""The `args` of a served vision-language model."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from serving.config import ServiceArgs, Strict
from serving.vlm.engines import EngineSettings  # noqa: TC001  pydantic reads it


class VlmLimits(Strict):
    """Caps on what one request may ask a vision-language model."""

    messages: int = Field(64, ge=1, description="turns of one conversation")
    text_chars: int = Field(32_768, ge=1, description="characters of its texts")
    answer_tokens: int = Field(1024, ge=1, description="most tokens of an answer; more are refused, never cut")
    default_tokens: int = Field(256, ge=1, description="of an answer whose request names no number")


class VlmArgs(ServiceArgs):
    """The `args` of a served vision-language model; at `/v1` clients of OpenAI's API look for one."""

    fixed_routes: ClassVar[tuple[str, ...]] = ("/v1",)

    engine: EngineSettings
    vlm: VlmLimits = VlmLimits()
    niceness: int = Field(
        0, ge=0, le=19, description="how far the engine's own work yields the cores, in steps of nice(1)"
    )
