"""The HTTP routes of Robometer's evaluation server (github.com/robometer/robometer, robometer/evals/eval_server.py).

Its clients work unchanged: `/evaluate_batch` takes JSON, `/evaluate_batch_npy` a multipart form whose arrays are .npy
files, and answers carry the same groups, null where nothing was asked of them. `use_frame_steps` reads every frame from
the frames up to it under the policy `floor-4`; without it all frames are shown at once. They stand behind the same keys
and limits as the native routes, and share the forward with them.

Where it differs from the original:
- a progress sample of T frames gives T values, one frame with frame steps included (four there);
- progress and preference samples may be mixed, with and without frame steps, and clips may differ in length;
- frames may be nested lists in JSON too; a list of file names is refused, since the server opens no files for a client;
- "true", "1" and 1 switch frame steps on, in any case; what is neither on nor off is refused;
- more frames than the model may be shown are refused instead of running it out of memory;
- a reference to a file that is not in the form, and a gap in the samples' numbers, are refused;
- errors are the typed ones of this service, as JSON; .npy files are never unpickled;
- an answer has one more entry, `served`: the model, mode, frame policy, and the frames shown;
- `/gpu_status` and `/health` count the replica's one forward as its one GPU, whatever it runs on; `/model_info` shows
  what the service tells of a model.

Fields of a trajectory other than its frames and task are accepted and not read.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from models.rewards.frames import FramePolicy
from serving.dialects.reward_messages import described
from serving.fields import kind_of
from serving.multipart import Part, read_form
from serving.reward_errands import Tally
from serving.reward_requests import ONLY_CAMERA, ClipAsk, CompareRequest, Header, PairAsk, ScoreRequest
from serving.service import HttpReply, HttpRequest, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from serving.reward_server import RewardServer

FRAME_STEPS = FramePolicy.parse("floor-4")
ALL = FramePolicy.parse("all")
_JSON_VALUES = 4_000_000
_PARTS_A_SAMPLE = 9
"""The sample itself, and four arrays of each of its two trajectories."""
_SWITCH = {"true": True, "1": True, "false": False, "0": False, "": False, "none": False}
_HEADER = Header(request_id=None, deadline_ms=None)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Checked samples by their kind, each in the order of the request."""

    progress: tuple[ClipAsk, ...]
    preference: tuple[PairAsk, ...]
    frame_steps: bool


class RobometerEval:
    """Answers the evaluation server's routes for a reward model.

    Args:
        server: the model's server; `upload_bytes`: cap on the body of a form.
    """

    def __init__(self, server: RewardServer, *, upload_bytes: int) -> None:
        self._server = server
        self._requests = 0
        self._seconds = 0.0
        self._last = 0.0
        self.routes = {
            ("POST", "/evaluate_batch"): Route(handler=self._evaluate_json),
            ("POST", "/evaluate_batch_npy"): Route(handler=self._evaluate_form, body_bytes=upload_bytes),
            ("GET", "/health"): Route(handler=self._health, access="public"),
            ("GET", "/gpu_status"): Route(handler=self._gpu_status),
            ("GET", "/model_info"): Route(handler=self._model_info),
        }

    async def _evaluate_json(self, request: HttpRequest) -> HttpReply:
        return await self._evaluate(request, lambda: self._read_json(request.body))

    async def _evaluate_form(self, request: HttpRequest) -> HttpReply:
        return await self._evaluate(request, lambda: self._read_form(request))

    async def _evaluate(self, request: HttpRequest, read: Callable[[], _Batch]) -> HttpReply:
        try:
            with self._server.metrics.counted(request.received):
                batch = await self._server.off_loop(read)
                return _json(await self._answer(batch))
        finally:
            self._requests += 1
            self._seconds += time.perf_counter() - request.received
            self._last = time.time()

    async def _answer(self, batch: _Batch) -> dict[str, Any]:
        answers, tally = self._server.answers, Tally()
        mode, policy = ("prefix", FRAME_STEPS) if batch.frame_steps else ("single_pass", ALL)
        score = ScoreRequest(header=_HEADER, clips=batch.progress, mode=mode, policy=policy, indices=None, every=1)
        compare = CompareRequest(header=_HEADER, pairs=batch.preference, policy=ALL, swap=False)
        clips = await answers.score(score, None, tally)
        pairs = await answers.compare(compare, None, tally)
        has_success = bool(clips) and clips[0]["success"] is not None
        chances = [float(pair["p_first"]) for pair in pairs]
        preference = {
            "predictions": [int(chance > 0.5) for chance in chances],
            "prediction_probs": chances,
            "preference_labels": [1.0] * len(chances),  # the chosen trajectory stands first
        }
        served = {"model": described(self._server.name, self._server.spec), "mode": mode, "frame_policy": policy.name}
        shown = [[window.tolist() for window in clip["shown"]] for clip in clips]
        return {
            "outputs_preference": preference if pairs else None,
            "outputs_progress": {"progress_pred": [clip["progress"].tolist() for clip in clips]} if clips else None,
            "outputs_success": {"success_probs": [clip["success"].tolist() for clip in clips]} if has_success else None,
            "served": {**served, "shown": shown},
        }

    def _read_json(self, body: bytes) -> _Batch:
        _refuse_many_values([body])
        message = _parsed(body, "body")
        if not isinstance(message, dict):
            raise RoboserveError("invalid_request", "body: must be a map with 'samples'")
        samples = message.get("samples")
        if not isinstance(samples, list):
            raise RoboserveError("invalid_request", f"samples: must be a list, is {kind_of(samples)}")
        named = {f"samples[{index}]": sample for index, sample in enumerate(samples)}
        return self._batch(named, {}, message.get("use_frame_steps"))

    def _read_form(self, request: HttpRequest) -> _Batch:
        most = _PARTS_A_SAMPLE * self._server.settings.clips + 1
        parts = read_form(request.body, request.headers.get(b"content-type", b""), max_parts=most)
        fields = {name: part.data for name, part in parts.items() if part.filename is None}
        switch = fields.pop("use_frame_steps", b"").decode("utf-8", "replace")
        names = [f"sample_{index}" for index in range(len(fields))]
        if set(names) != set(fields):
            odd = ", ".join(sorted(set(fields) - set(names)))
            raise RoboserveError(
                "invalid_request", f"body: fields {odd:.200}; known are use_frame_steps and sample_0, sample_1, ..."
            )
        _refuse_many_values(fields.values())
        return self._batch({name: _parsed(fields[name], name) for name in names}, parts, switch)

    def _batch(self, samples: Mapping[str, Any], parts: Mapping[str, Part], switch: Any) -> _Batch:
        if not samples:
            raise RoboserveError("invalid_request", "samples: none, needs at least one")
        if len(samples) > self._server.settings.clips:
            raise RoboserveError(
                "too_large", f"samples: {len(samples)}, limit {self._server.settings.clips} in one request"
            )
        frame_steps = _SWITCH.get(str(switch).strip().lower())
        if frame_steps is None:
            raise RoboserveError("invalid_request", f"use_frame_steps: {switch!r:.40}, must be true or false")
        progress, preference = [], []
        for name, sample in samples.items():
            kind = sample.get("sample_type") if isinstance(sample, dict) else None
            if kind == "progress":
                frames, task = self._trajectory(sample, "trajectory", name, parts)
                progress.append(
                    ClipAsk(instruction=task, cameras={ONLY_CAMERA: frames}, named=False, field=f"{name}.trajectory")
                )
            elif kind == "preference":
                preference.append(self._pair(sample, name, parts))
            else:
                text = f"{name}.sample_type: {kind!r:.40}, must be 'progress' or 'preference'"
                raise RoboserveError("invalid_request", text)
        return _Batch(progress=tuple(progress), preference=tuple(preference), frame_steps=frame_steps)

    def _pair(self, sample: Mapping[str, Any], name: str, parts: Mapping[str, Part]) -> PairAsk:
        if not self._server.spec.supports_compare:
            raise RoboserveError(
                "invalid_request", f"{name}.sample_type: 'preference', which {self._server.name!r} does not support"
            )
        first, task = self._trajectory(sample, "chosen_trajectory", name, parts)
        second, _ = self._trajectory(sample, "rejected_trajectory", name, parts)
        return PairAsk(instruction=task, first=first, second=second, field=name)

    def _trajectory(self, sample: Mapping[str, Any], key: str, name: str, parts: Mapping[str, Part]) -> tuple[Any, str]:
        """Return the frames of a trajectory, in a form that `clips.clip_frames` takes, and its task."""
        where = f"{name}.{key}"
        trajectory = sample.get(key)
        if not isinstance(trajectory, dict):
            raise RoboserveError("invalid_request", f"{where}: must be a map, is {kind_of(trajectory)}")
        task = self._server.parser.instruction(trajectory.get("task"), f"{where}.task")
        frames = trajectory.get("frames")
        if isinstance(frames, dict) and isinstance(file := frames.get("__numpy_file__"), str):
            if file not in parts:
                raise RoboserveError("invalid_request", f"{where}.frames: no part of the form is named {file!r:.80}")
            return {"npy": parts[file].data}, task
        return _from_lists(frames, f"{where}.frames"), task

    async def _health(self, _request: HttpRequest) -> HttpReply:
        try:
            self._server.check_health()
        except RuntimeError as error:
            raise RoboserveError("unavailable", str(error)) from error
        return _json({"status": "healthy", "available_gpus": self._available(), "total_gpus": 1})

    async def _gpu_status(self, _request: HttpRequest) -> HttpReply:
        available = self._available()
        stats = {
            "total_requests": self._requests,
            "total_processing_time": self._seconds,
            "last_used": self._last,
            "status": "ready" if available else "busy",
        }
        pool = {"total_gpus": 1, "available_gpus": available, "max_workers": 1, "pool_size": 1}
        return _json({**pool, "gpu_stats": {"0": stats}})

    async def _model_info(self, _request: HttpRequest) -> HttpReply:
        spec = self._server.spec
        model = described(self._server.name, spec)
        data = {"max_frames": spec.max_frames, "frame_policy": spec.frame_policy, "image_size": spec.image_size}
        info = {"model_path": spec.id, "num_gpus": 1, "experiment_config": {"data": data}, "model_architecture": model}
        return _json(info)

    def _available(self) -> int:
        return 0 if self._server.busy else 1


def _json(answer: Mapping[str, Any]) -> HttpReply:
    return HttpReply(body=json.dumps(answer, allow_nan=False).encode(), content_type="application/json")


def _refuse_many_values(texts: Iterable[bytes]) -> None:
    """Bound what reading JSON makes, before it makes any: a value of two bytes may take sixty in memory.

    Raises:
        RoboserveError: `too_large`.
    """
    values = sum(text.count(b",") + text.count(b"[") + text.count(b"{") for text in texts)
    if values > _JSON_VALUES:
        raise RoboserveError(
            "too_large", f"samples: {values} values in JSON, limit {_JSON_VALUES}; /evaluate_batch_npy takes arrays"
        )


def _parsed(data: bytes, field: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RoboserveError("malformed", f"{field}: is not JSON") from error


def _from_lists(value: Any, field: str) -> np.ndarray[Any, Any]:
    """Return nested lists of whole numbers from 0 to 255 as a uint8 array.

    Raises:
        RoboserveError: `invalid_image`.
    """
    if not isinstance(value, list):
        raise RoboserveError("invalid_image", f"{field}: must be a .npy file or nested lists, is {kind_of(value)}")
    if any(isinstance(frame, str) for frame in value):
        raise RoboserveError("invalid_image", f"{field}: names files, which this server does not open; send the frames")
    try:
        numbers = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise RoboserveError("invalid_image", f"{field}: must be nested lists of equal lengths, of numbers") from error
    if not ((numbers >= 0) & (numbers <= 255) & (numbers == np.rint(numbers))).all():  # false for NaN too
        raise RoboserveError("invalid_image", f"{field}: must be whole numbers from 0 to 255")
    return numbers.astype(np.uint8)
