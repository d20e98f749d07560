"""A policy server as openpi's speaks: a greeting, then an answer for each observation, MessagePack with arrays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from vla_agent.actors.messages import packed, unpacked


def still(observation: dict[str, Any]) -> dict[str, Any]:
    """Ten actions that hold still with an open hand."""
    return {"actions": np.tile(np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32), (10, 1))}


class PolicyServer:
    """A server in a thread; use it as a context.

    Args:
        policy: Function of an observation.
        metadata: What it says of itself; bytes or text are sent as they are.
        hang_up_after: Hang up instead of the answer to requests of these numbers, counted from 0 over all connections.
        port: Port; any that is free by default.

    Attributes:
        seen: The observations, in the order in which they came.
        connections: Number of connections so far.
        authorizations: What each connection was authorised by.
        address: What clients connect to.
    """

    def __init__(
        self,
        policy: Callable[[dict[str, Any]], Any] = still,
        metadata: Any = None,
        hang_up_after: tuple[int, ...] = (),
        port: int = 0,
    ) -> None:
        self.policy, self.hang_up_after = policy, hang_up_after
        self.greeting = metadata if isinstance(metadata, (str, bytes)) else packed(metadata or {})
        self.seen: list[dict[str, Any]] = []
        self.connections = 0
        self.authorizations: list[str | None] = []
        self._server: Server = serve(self._serve, "localhost", port, compression=None, max_size=None)
        self.port = self._server.socket.getsockname()[1]
        self.address = f"ws://localhost:{self.port}"

    def __enter__(self) -> PolicyServer:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.shutdown()
        self._thread.join()

    def _serve(self, connection: ServerConnection) -> None:
        self.connections += 1
        self.authorizations.append(connection.request.headers.get("Authorization") if connection.request else None)
        connection.send(self.greeting)
        while True:
            try:
                self.seen.append(unpacked(connection.recv()))
                if len(self.seen) - 1 in self.hang_up_after:
                    return  # the connection ends with its handler
                answer = self.policy(self.seen[-1])
                connection.send(answer if isinstance(answer, (str, bytes)) else packed(answer))
            except ConnectionClosed:
                return
