"""Settings of a preference service."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from serving.config import FactorySettings, ServiceArgs, Strict


class BudgetSettings(Strict):
    """What may be asked of one replica, within a period or since its start; null: no limit.

    Labels are counted by the pairs that are asked for, whatever comes of them, as RL-VLM-F counts; tokens by what the
    model really read and wrote.
    """

    labels: int | None = Field(None, ge=0, description="pairs of all callers")
    tokens: int | None = Field(None, ge=0, description="tokens of all callers")
    job_labels: int | None = Field(None, ge=0, description="pairs of one job of one caller")
    job_tokens: int | None = Field(None, ge=0, description="tokens of one job of one caller")
    period_s: float | None = Field(None, gt=0, description="after so long everything is counted anew (86400: a day)")


class PreferenceSettings(Strict):
    """Caps of a preference service, and how much it keeps."""

    pairs: int = Field(64, ge=1, le=4096, description="pairs of one request")
    clip_frames: int = Field(8, ge=1, description="frames of one side; the labeller may take fewer")
    votes: int = Field(9, ge=1, le=64, description="times that one request may have a pair asked")
    under_way: int = Field(512, ge=1, description="pairs that wait for a label; beyond it requests are overload")
    frame_bytes: int = Field(
        1 << 28, ge=1, description="decoded frames of all requests under way; beyond it requests are overload"
    )
    alike: float = Field(
        1e-3, ge=0, le=1, description="root mean square pixel distance under which nobody is asked; the label is -1"
    )
    cache_bytes: int = Field(1 << 25, ge=0, description="labels that were given, with their raw answers")
    budget: BudgetSettings = BudgetSettings()
    niceness: int = Field(
        0, ge=0, le=19, description="how far this replica's own work yields the cores, in steps of nice(1)"
    )

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.pairs > self.under_way:
            raise ValueError(f"under_way: {self.under_way}, must hold the {self.pairs} pairs of one request")
        return self


class PreferenceArgs(ServiceArgs):
    """The `args` of a served labeller."""

    labeller: FactorySettings
    preferences: PreferenceSettings = PreferenceSettings()
