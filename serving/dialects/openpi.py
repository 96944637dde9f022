"""The dialect of stock openpi clients: metadata first, then strict ping-pong (openpi, websocket_policy_server.py).

An observation is a flat or nested map with the client's own keys, images of any size are resized with padding as
openpi's transforms do, and results carry `server_timing` and `policy_timing`. An error is one text frame and close code
1011; the text is our typed message, where the original sends its traceback.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.errors import RoboserveError
from clients.images import decode_image, resize_with_pad
from clients.wire import encode
from models.policies.contract import ActOptions, Observation
from serving.ingress import log_error
from serving.requests import ActRequest, check_instruction, check_state

if TYPE_CHECKING:
    from serving.config import OpenpiKeys
    from serving.ingress import WebsocketSession
    from serving.policy import ActOutcome, PolicyServer

_HWC_DIMS = 3


class OpenpiDialect:
    """Speaks openpi's protocol for a policy.

    Args:
        keys: the client's names for this policy's inputs.
    """

    def __init__(self, server: PolicyServer, keys: OpenpiKeys) -> None:
        self._server = server
        self._keys = keys
        self._images = keys.images or {f"observation/{camera.name}": camera.name for camera in server.spec.cameras}

    async def serve(self, session: WebsocketSession) -> None:
        """Speak until the peer leaves or an error ends the session."""
        await session.send(encode({**self._server.contract.to_map(), "openpi_keys": self._describe()}))
        previous_total_ms: float | None = None
        try:
            while True:
                data = await session.receive()
                received = time.perf_counter()
                reply = await self._answer(session, data, received, previous_total_ms)
                await session.send(reply)
                previous_total_ms = (time.perf_counter() - received) * 1e3
        except RoboserveError as error:
            log_error(error, service=self._server.name, transport="openpi")
            session.metrics.on_request(error.code, 0.0)
            await session.send_text(str(error))
            await session.close(1011, "the previous frame has the error")
        finally:
            await self._server.reset(session.id, session.principal)

    def _describe(self) -> dict[str, Any]:
        return {"images": self._images, "state": self._keys.state, "prompt": self._keys.prompt}

    async def _answer(self, session: WebsocketSession, data: bytes, received: float, previous: float | None) -> bytes:
        message = _flat(self._server.decode(data))
        request = await self._server.off_loop(lambda: self._request(message, session.id))
        decode_s = time.perf_counter() - received
        outcome = await self._server.act(request, session.principal, received=received, decode_s=decode_s)
        session.metrics.on_request("ok", time.perf_counter() - received)
        return encode(_reply(request, outcome, received, previous))

    def _request(self, message: dict[str, Any], session: str) -> ActRequest:
        spec = self._server.spec
        known = {self._keys.state, self._keys.prompt, *self._images}
        unknown = sorted(set(message) - known)
        missing = sorted({self._keys.state, *self._images} - set(message))
        if missing or unknown:
            text = f"observation: missing {missing}, unknown {unknown}"[:300]
            raise RoboserveError("invalid_request", f"{text}; this policy takes {sorted(known)}")
        prompt = message.get(self._keys.prompt, self._keys.default_prompt)
        images = {camera: self._image(message[key], key, camera) for key, camera in self._images.items()}
        observation = Observation(
            images=images,
            state=check_state(np.asarray(message[self._keys.state]), spec),
            instruction=check_instruction(prompt, spec),
        )
        return ActRequest(
            request_id=None,
            session=session,
            adapter=None,
            deadline_ms=None,
            observation=observation,
            options=ActOptions(),
            executed=None,
            return_model_actions=False,
        )

    def _image(self, value: Any, key: str, camera: str) -> np.ndarray[Any, Any]:
        """Accept uint8 as height x width x 3 or, as ALOHA clients send it, 3 x height x width; resize with padding."""
        if isinstance(value, np.ndarray) and value.ndim == _HWC_DIMS and value.shape[0] == 3 != value.shape[2]:
            value = np.ascontiguousarray(np.moveaxis(value, 0, 2))
        image = decode_image(value, field=key, max_pixels=self._server.limits.image_pixels)
        wanted = next(item for item in self._server.spec.cameras if item.name == camera)
        return resize_with_pad(image, wanted.height, wanted.width)


def _flat(message: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join nested maps with slashes: {"images": {"top": x}} reads as "images/top"."""
    flat: dict[str, Any] = {}
    for key, value in message.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}/"))
        else:
            flat[prefix + key] = value
    return flat


def _reply(request: ActRequest, outcome: ActOutcome, received: float, previous: float | None) -> dict[str, Any]:
    server_timing = {"infer_ms": (time.perf_counter() - received) * 1e3}
    if previous is not None:
        server_timing["prev_total_ms"] = previous
    return {
        "actions": outcome.chunk.actions,
        "state": request.observation.state,
        "policy_timing": {"infer_ms": outcome.timings["forward"]},
        "server_timing": server_timing,
    }
