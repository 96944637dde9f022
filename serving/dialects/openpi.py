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
from serving.websocket import PeerGoneError

if TYPE_CHECKING:
    from serving.config import OpenpiKeys
    from serving.policy_server import ActOutcome, PolicyServer
    from serving.websocket import WebsocketSession

_HWC_DIMS = 3


class OpenpiDialect:
    """Speaks openpi's protocol for a policy.

    Args:
        keys: the client's names for this policy's inputs.

    Raises:
        ValueError: the names do not give each camera of the policy exactly once.
    """

    def __init__(self, server: PolicyServer, keys: OpenpiKeys) -> None:
        self._server = server
        self._keys = keys
        self._images = keys.images or {f"observation/{camera.name}": camera.name for camera in server.spec.cameras}
        self._sizes = {camera.name: (camera.height, camera.width) for camera in server.spec.cameras}
        if sorted(self._images.values()) != sorted(self._sizes):
            given, needed = sorted(self._images.values()), sorted(self._sizes)
            raise ValueError(f"openpi.images: names the cameras {given}, the policy has {needed}")
        self._described = {"images": self._images, "state": keys.state, "prompt": keys.prompt}

    async def serve(self, session: WebsocketSession) -> None:
        """Speak until the peer leaves or an error ends the session."""
        try:
            await session.send(encode({**self._server.contract.to_map(), "openpi_keys": self._described}))
            await self._converse(session)
        except PeerGoneError:
            raise
        except RoboserveError as error:
            await self._refuse(session, error)
        except Exception as raised:  # noqa: BLE001  a fault of ours: the peer gets a typed error, the log gets the cause
            fault = RoboserveError("internal", "the server failed on this request")
            fault.__cause__ = raised
            await self._refuse(session, fault)
        finally:
            await self._server.end_session(session.id, session.principal)

    async def _converse(self, session: WebsocketSession) -> None:
        previous_total_ms: float | None = None
        while True:
            data = await session.receive()
            received = time.perf_counter()
            with self._server.counted(received):
                reply = await self._answer(session, data, received, previous_total_ms)
            await session.send(reply)
            previous_total_ms = (time.perf_counter() - received) * 1e3

    async def _refuse(self, session: WebsocketSession, error: RoboserveError) -> None:
        log_error(error, service=self._server.name, transport="openpi")
        await session.send_text(str(error))
        await session.close(1011, "the previous frame has the error")

    async def _answer(self, session: WebsocketSession, data: bytes, received: float, previous: float | None) -> bytes:
        message = _flat(self._server.decode(data))

        def parse() -> ActRequest:
            return self._request(message, session.id)

        request = await self._server.off_loop(parse) if self._is_work(message) else parse()
        decode_s = time.perf_counter() - received
        outcome = await self._server.act(request, session.principal, received=received, decode_s=decode_s)
        return encode(_reply(request, outcome, received, previous))

    def _is_work(self, message: dict[str, Any]) -> bool:
        """Whether images must be decoded or resized, which takes longer than a thread's hand-over."""
        return any(
            not isinstance(message.get(key), np.ndarray) or message[key].shape[:2] != self._sizes[camera]
            for key, camera in self._images.items()
        )

    def _request(self, message: dict[str, Any], session: str) -> ActRequest:
        spec, keys = self._server.spec, self._keys
        known = {keys.state, keys.prompt, *self._images}
        unknown = sorted(set(message) - known)
        missing = sorted({keys.state, *self._images} - set(message))
        if missing or unknown:
            text = f"observation: missing {missing}, unknown {unknown}"[:300]
            raise RoboserveError("invalid_request", f"{text}; this policy takes {sorted(known)}")
        observation = Observation(
            images={camera: self._image(message[key], key, camera) for key, camera in self._images.items()},
            state=check_state(_as_array(message[keys.state], keys.state), spec, field=keys.state),
            instruction=check_instruction(message.get(keys.prompt, keys.default_prompt), spec, field=keys.prompt),
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
        return resize_with_pad(image, *self._sizes[camera])


def _as_array(value: Any, key: str) -> Any:
    """Read a list of numbers as an array, as openpi's transforms do."""
    if isinstance(value, list):
        if not all(isinstance(number, (int, float, np.number)) and not isinstance(number, bool) for number in value):
            raise RoboserveError("invalid_state", f"{key}: must be an array or a list of numbers")
        return np.array(value, dtype=np.float64)
    return value


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
