"""Which engine runs a vision-language model: a setting, whose answers are the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path  # noqa: TC003  pydantic reads it
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from models.folders import checkpoint_folder
from serving.config import Strict

if TYPE_CHECKING:
    from models.vlm.checkpoint import VlmFolder
    from serving.vlm.contract import VlmEngine


class LocalSettings(Strict):
    """What the engines that run a checkpoint folder share."""

    checkpoint: str = Field(description="folder, or zoo:NAME")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    adapters: dict[str, Path] = Field(
        default_factory=dict, description="name to PEFT folder or zoo:NAME, beside those in the checkpoint's adapters/"
    )
    context: int | None = Field(
        None, ge=16, description="most tokens of prompt and answer; null is the checkpoint's own"
    )
    images: int = Field(8, ge=0, le=64, description="most images of one conversation")
    max_queue: int = Field(256, ge=1, description="requests under way; beyond it they are refused as overloaded")

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies."""
        return checkpoint_folder(self.checkpoint)

    def all_adapters(self, folder: VlmFolder) -> dict[str, Path]:
        """Return name to folder of the adapters to begin with."""
        return {**folder.adapters, **{name: checkpoint_folder(str(given)) for name, given in self.adapters.items()}}


class TransformersSettings(LocalSettings):
    """transformers, in the replica's process."""

    kind: Literal["transformers"] = "transformers"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    quantization: Literal["none", "int8", "nf4"] = "none"
    max_batch: int = Field(16, ge=1, le=256, description="prompts of one forward")
    batch_tokens: int = Field(16_384, ge=64, description="tokens of one forward, padding included")


class VllmSettings(LocalSettings):
    """vLLM, in a process beside the replica."""

    kind: Literal["vllm"] = "vllm"
    max_batch: int = Field(32, ge=1, le=1024, description="answers that go on at once")
    max_adapters: int = Field(4, ge=1, le=64, description="adapters that ride in one batch")
    max_rank: Literal[8, 16, 32, 64, 128, 256] = 64
    kv_cache_bytes: int = Field(256 * 2**20, ge=2**20, description="memory of the key-value cache")
    image_cache_gib: float = Field(0.25, ge=0, description="memory of preprocessed images")
    eager: bool = Field(default=True, description="no compilation: a start of seconds")
    quantization: Literal["none", "bitsandbytes"] = "none"
    tensor_parallel: int = Field(1, ge=1, le=16)


class RemoteSettings(Strict):
    """A server that speaks OpenAI's API: vLLM, SGLang, or a hosted one."""

    kind: Literal["openai"] = "openai"
    base_url: str = Field(pattern=r"^https?://[^\s]+$", description="up to and including /v1")
    model: str = Field(min_length=1, description="as the server calls it; it is asked for adapters by their own names")
    key_env: str | None = Field(
        None, pattern=r"^[A-Z_][A-Z0-9_]*$", description="environment variable with the API key"
    )
    adapters: tuple[str, ...] = Field((), description="names of adapters that the server has")
    images: int = Field(8, ge=0, le=64)
    context: int = Field(8192, ge=16)
    max_queue: int = Field(256, ge=1)
    connections: int = Field(32, ge=1, le=1024)
    timeout_s: float = Field(120.0, gt=0)
    retries: int = Field(3, ge=0, le=10, description="of 429, 502, 503 and lost connections, with growing pauses")
    structured: Literal["response_format", "vllm"] = Field(
        "response_format",
        description="how constraints are sent: OpenAI's JSON schema, or vLLM's structured_outputs",
    )


class AppSettings(Strict):
    """The engine of a VLM application of the same platform, asked through a deployment handle."""

    kind: Literal["app"] = "app"
    application: str = Field(min_length=1, description="name of the application, as in the configuration")
    deployment: str = "VlmService"


EngineSettings = Annotated[
    TransformersSettings | VllmSettings | RemoteSettings | AppSettings, Field(discriminator="kind")
]


def vllm_is_installed() -> bool:
    """Whether vLLM can be imported, whatever its distribution is called."""
    return importlib.util.find_spec("vllm") is not None


async def make_engine(settings: EngineSettings) -> VlmEngine:
    """Start the engine that a configuration names.

    Raises:
        ImportError: its library is not installed; the message names the extra.
        FileNotFoundError, ValueError: the checkpoint is missing or damaged.
    """
    if isinstance(settings, TransformersSettings):
        from serving.vlm.transformers_engine import TransformersEngine

        return await TransformersEngine.start(settings)
    if isinstance(settings, VllmSettings):
        from serving.vlm.vllm_engine import VllmEngine

        return await VllmEngine.start(settings)
    if isinstance(settings, RemoteSettings):
        from serving.vlm.remote_engine import RemoteEngine

        return RemoteEngine(settings)
    from serving.vlm.app_engine import AppEngine

    return await AppEngine.connect(settings)
