"""What stands between uvicorn and the application on a replica; Ray Serve takes it from its environment.

`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serving.asgi:middlewares`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Scope = MutableMapping[str, Any]
    Channel = Callable[..., Awaitable[Any]]

_OWN_DISCONNECTS = (b"x-request-disconnect-disabled", b"?1")


class OwnDisconnects:
    """Tells Ray Serve that websocket sessions watch for their own end.

    Otherwise Ray reads each connection ahead into a queue without a bound, whatever the application's pace: a peer that
    floods takes the replica's memory, and each message pays for one more task.
    """

    def __init__(self, app: Channel) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        """Pass the connection on."""
        if scope["type"] == "websocket":
            scope = {**scope, "headers": [*scope["headers"], _OWN_DISCONNECTS]}
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return the middlewares of a replica."""
    return [Middleware(OwnDisconnects)]
