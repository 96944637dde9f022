"""Settings of a path service."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from serving.config import ServiceArgs, Strict
from serving.vlm.config import VlmLimits
from serving.vlm.engines import EngineSettings, LocalSettings, RemoteSettings

ViewName = Literal["none", "center_crop", "pad", "stretch"]


class PathSettings(Strict):
    """Caps of a path service, and how much it keeps."""

    images: int = Field(8, ge=1, le=256, description="images of one request, each with an instruction")
    points: int = Field(64, ge=1, le=256, description="points of one answer; more are refused, never cut")
    under_way: int = Field(128, ge=1, description="images that wait for a path; beyond it requests are overload")
    image_bytes: int = Field(
        1 << 28, ge=1, description="decoded images of all requests under way; beyond it requests are overload"
    )
    sessions: int = Field(1024, ge=1, description="kept paths of one replica")
    session_idle_s: float = Field(3600.0, gt=0, description="a kept path that nobody asks for so long is dropped")
    niceness: int = Field(
        0, ge=0, le=19, description="how far this replica's own work yields the cores, in steps of nice(1)"
    )

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.images > self.under_way:
            raise ValueError(f"under_way: {self.under_way}, must hold the {self.images} images of one request")
        return self


class PathArgs(ServiceArgs):
    """The `args` of a served path predictor."""

    engine: EngineSettings
    adapter: str | None = Field(None, description="who answers, as the engine calls it; null is the base")
    prompt: str | None = Field(
        None, description="folder with a path_prompt.json, or zoo:NAME; null is the engine's own folder"
    )
    structured: bool = Field(
        default=True, description="only answers of the grammar can come; false for an engine without constraints"
    )
    tolerance: float | None = Field(
        0.05, ge=0, le=1, description="of Ramer-Douglas-Peucker, in normalised coordinates; null keeps every point"
    )
    view: ViewName = Field("none", description="how an image is shown where a request does not say")
    image_size: tuple[int, int] | None = Field(
        None, description="(height, width) that a cropped, padded or stretched image is brought to; null keeps pixels"
    )
    chat: VlmLimits = Field(VlmLimits(default_tokens=512), description="caps of HAMSTER's and OpenAI's dialects")
    paths: PathSettings = PathSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if isinstance(self.engine, RemoteSettings) and self.structured and self.engine.structured != "vllm":
            raise ValueError("structured: a path needs a regular expression, so engine.structured must be 'vllm'")
        if self.prompt is None and not isinstance(self.engine, LocalSettings):
            raise ValueError("prompt: must be given, for the engine's folder is not here")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"image_size: {self.image_size}, sides must be 1 or more")
        return self

    @property
    def prompt_folder(self) -> str:
        """The folder with the wording, "zoo:NAME" too."""
        if self.prompt is not None:
            return self.prompt
        return self.engine.checkpoint if isinstance(self.engine, LocalSettings) else ""
