"""A policy behind a websocket, by openpi's protocol: pi0, pi0-FAST, pi0.5, SmolVLA, GR00T or any other.

The server says first what it is (a map, which may be empty). Then each request is an observation, and each answer holds
``actions``. openpi's server and its LIBERO client are the truth (Physical-Intelligence/openpi,
src/openpi/serving/websocket_policy_server.py and examples/libero/main.py).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from libero_gym.common.checks import real_number, whole_number
from libero_gym.common.version import install_extra
from libero_gym.dimensions import ACTION_DIM
from vla_agent.actors.interface import RENDER_SIZE, PolicyError
from vla_agent.actors.messages import packed, unpacked

logger = logging.getLogger(__name__)

# Of openpi's LIBERO script.
REPLAN_STEPS, MODEL_IMAGE_SIZE = 5, 224
MAX_MESSAGE = 64 * 2**20  # bytes of an answer, far more than actions have; one of many tiny objects takes 70 times that
_CONNECT_S = 10.0
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 10.0
_MAX_METADATA = 20_000  # bytes of what a server says of itself, in a report
_PROTOCOL_ERROR, _NOT_TEXT, _TOO_BIG = 1002, 1007, 1009  # RFC 6455, section 7.4.1


class RemotePolicy:
    """A policy server as an `Actor`. Each environment has a connection of its own, as each of n clients would.

    Requests of several environments are all sent before the first answer is read, so a server may answer them in one
    batch. A connection that breaks is opened again, and its request sent again: the evaluation goes on.

    Args:
        address: ``ws://host:port`` or ``wss://host:port``.
        replan_steps: Actions of each chunk that are executed before the server is asked again.
        image_size: Side of the frames that are sent; they are rendered at 256 pixels and go through a bilinear resize,
            without JPEG, as openpi's script does it. (It would pad a frame that is not square; ours are.)
        patience_s: Seconds that a lost server may take to come back.
        answer_s: Seconds that it may take for an answer. The first one may have to wait for a compiler.
        api_key: Key that is sent as ``Authorization: Api-Key ...``; None sends none.

    Raises:
        ValueError: If an argument is out of range, or the address is none.
        ImportError: If the packages of the extra ``[remote]`` are missing.
        PolicyError: If no policy server answers there.
    """

    cameras = ("agentview", "wrist")

    def __init__(
        self,
        address: str,
        *,
        replan_steps: int | None = None,
        image_size: int = MODEL_IMAGE_SIZE,
        patience_s: float = 120.0,
        answer_s: float = 600.0,
        api_key: str | None = None,
    ) -> None:
        self.address = checked_address(address)
        self.chunk_size = REPLAN_STEPS if replan_steps is None else whole_number("replan_steps", replan_steps, 1)
        self.image_size = RENDER_SIZE
        self.sent_size = whole_number("image_size", image_size, 1)
        self.patience_s = real_number("patience_s", patience_s, 0.0)
        self.answer_s = real_number("answer_s", answer_s, above=0.0)
        self._headers = None if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        _websockets()
        self._lines: dict[int, _Line] = {}
        first = self._line(0)
        first.open()
        self.description = {"server": first.metadata}
        self.settings = {"replan_steps": self.chunk_size, "sent_image_size": self.sent_size}

    def reset(self, env_ids: Sequence[int]) -> None:
        """Nothing: openpi's protocol has no word for it, and its policies remember nothing."""

    def act(self, observations: Mapping[str, Any], env_ids: Sequence[int]) -> np.ndarray:
        """Actions, float64 (n, replan_steps, 7); see `Actor`.

        Raises:
            PolicyError: If the server stays away, says that it failed, or answers no actions.
        """
        lines = [self._line(env_id) for env_id in env_ids]
        for row, line in enumerate(lines):
            line.send(packed(self.request(observations, row)))
        return np.stack([self._actions(line.receive()) for line in lines])

    def request(self, observations: Mapping[str, Any], row: int) -> dict[str, Any]:
        """The message about one environment, by the keys of openpi's LIBERO script."""
        return {
            "observation/image": resized(observations["image"][row], self.sent_size),
            "observation/wrist_image": resized(observations["wrist_image"][row], self.sent_size),
            "observation/state": observations["state"][row].astype(np.float64),  # the type that openpi's script sends
            "prompt": str(observations["instruction"][row]),
        }

    def close(self) -> None:
        """Close all connections; safe to call twice."""
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def _line(self, env_id: int) -> _Line:
        if env_id not in self._lines:
            self._lines[env_id] = _Line(self.address, self._headers, self.patience_s, self.answer_s)
        return self._lines[env_id]

    def _actions(self, answer: Any) -> np.ndarray:
        """The actions of a chunk that are executed, float64 (replan_steps, 7)."""
        who = f"The server at {self.address}"
        if not isinstance(answer, dict) or "actions" not in answer:
            keys = ", ".join(map(str, answer)) if isinstance(answer, dict) else f"a {type(answer).__name__}"
            raise PolicyError(
                f"{who} answered without 'actions' (it gave {keys or 'nothing'}); is it a LIBERO policy's?"
            )
        try:
            chunk = np.asarray(answer["actions"], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise PolicyError(f"{who} answered actions that are no array of numbers ({error}).") from error
        if chunk.ndim != 2 or chunk.shape[1] != ACTION_DIM:
            raise PolicyError(
                f"{who} answered actions of shape {chunk.shape}; expected (H, {ACTION_DIM}), H at least "
                f"{self.chunk_size}: is it a LIBERO policy's?"
            )
        if len(chunk) < self.chunk_size:
            raise PolicyError(
                f"{who} answered {len(chunk)} actions, and {self.chunk_size} are to be executed before it is asked "
                f"again; give replan_steps={len(chunk)} (--replan-steps {len(chunk)}), or fewer."
            )
        return chunk[: self.chunk_size]


class _Line:
    """A connection, and the request on it that has no answer yet."""

    def __init__(self, address: str, headers: dict[str, str] | None, patience_s: float, answer_s: float) -> None:
        self.address, self.headers = address, headers
        self.patience_s, self.answer_s = patience_s, answer_s
        self.metadata: dict[str, Any] = {}
        self._opened = contextlib.ExitStack()
        self._connection: Any = None
        self._request = b""
        self._is_asked = False  # whether an answer may still come

    def open(self) -> None:
        """Connect, and hear what the server says of itself.

        Raises:
            PolicyError: If nobody is there, or something else than a policy server.
        """
        websockets = _websockets()
        try:
            connecting = websockets.sync.client.connect(
                self.address,
                additional_headers=self.headers,
                compression=None,
                max_size=MAX_MESSAGE,
                open_timeout=_CONNECT_S,
                ping_interval=None,  # a server that compiles answers no ping for minutes
            )
            self._connection = self._opened.enter_context(connecting)
            greeting = self._connection.recv(timeout=_CONNECT_S)
        except (OSError, TimeoutError) as error:
            self.close()
            raise _Absent(
                f"No policy server answers at {self.address} ({_reason(error)}); start it first (openpi: "
                "scripts/serve_policy.py), or give its address."
            ) from error
        except websockets.exceptions.WebSocketException as error:
            self.close()
            _check_curable(self.address, error)
            raise _Absent(
                f"{self.address} answers, but not as a policy server ({_reason(error)}); expected openpi's protocol."
            ) from error
        self.metadata = self._introduction(greeting)

    def send(self, request: bytes) -> None:
        """Send a request. If the connection is broken, `receive` sends it again."""
        if self._is_asked:  # by a call that was cut off: the answer to that would be taken for this one's
            self.close()
        self._request, self._is_asked = request, True
        try:
            if self._connection is None:
                self.open()
            self._connected().send(request)
        except _lost() as error:
            self._drop(error)

    def receive(self) -> Any:
        """The answer to the request, from a new connection if the old one breaks.

        Raises:
            PolicyError: If the server stays away too long, says that it failed, or breaks the websocket's rules.
        """
        pause = _PAUSE_S
        until: float | None = None  # counted from the loss: an answer may have taken long before it
        while True:
            try:
                if self._connection is None:
                    self.open()
                    self._connected().send(self._request)
                answer = self._connected().recv(timeout=self.answer_s)
                break
            except TimeoutError as error:
                self.close()
                raise PolicyError(
                    f"The server at {self.address} did not answer within {self.answer_s:g} s; look at its log."
                ) from error
            except _lost() as error:
                self._drop(error)
                _check_curable(self.address, error)
                until = time.monotonic() + self.patience_s if until is None else until
                if time.monotonic() >= until:
                    raise PolicyError(
                        f"The server at {self.address} went away and did not come back within {self.patience_s:g} s "
                        f"({_reason(error)})."
                    ) from error
                time.sleep(min(pause, max(0.0, until - time.monotonic())))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        self._is_asked = False
        if isinstance(answer, str):  # openpi's server sends its traceback as text, and hangs up
            self.close()
            raise PolicyError(f"The server at {self.address} failed: {_last_line(answer)}")
        return self._read(answer)

    def close(self) -> None:
        """Hang up; safe to call twice."""
        self._connection = None
        self._opened.close()

    def _connected(self) -> Any:
        return self._connection

    def _drop(self, error: BaseException) -> None:
        logger.warning("The connection to %s broke (%s); trying again", self.address, _reason(error))
        self.close()

    def _introduction(self, greeting: Any) -> dict[str, Any]:
        content = self._read(greeting) if isinstance(greeting, bytes) else greeting
        if not isinstance(content, dict):
            self.close()
            raise PolicyError(
                f"{self.address} answers, but not as a policy server (it began with {content!r:.60}); expected "
                "openpi's protocol, whose first message is a map."
            )
        if len(greeting) > _MAX_METADATA:
            return {"left out": f"{len(greeting)} bytes"}
        try:
            return dict(_without_nan(json.loads(json.dumps(content, default=_as_json, sort_keys=True))))
        except (TypeError, ValueError, RecursionError) as error:
            self.close()
            raise PolicyError(
                f"{self.address} answers, but what it says of itself is no map by names ({error}); expected openpi's "
                "protocol."
            ) from error

    def _read(self, message: Any) -> Any:
        try:
            return unpacked(message)
        except ValueError as error:
            self.close()
            raise PolicyError(
                f"The server at {self.address} sent something else than openpi's messages: {error}."
            ) from error


class _Absent(PolicyError):
    """Nobody is there now."""


def checked_address(address: str) -> str:
    """The address itself, if a websocket can be opened there.

    Raises:
        ValueError: If it is none.
    """
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
        has_secret = parts.username is not None or parts.password is not None
    except ValueError:  # a port that is no number
        is_one = has_secret = False
    if has_secret:
        raise ValueError(
            f"The address of {parts.hostname} names a user or a password, which reports would show; leave them out, "
            "and give the server's key in the environment variable LIBERO_VLA_API_KEY."
        )
    if not is_one:
        raise ValueError(
            f"{address!r} is no address of a policy server; expected ws://host:port, such as ws://localhost:8000."
        )
    return address


def resized(frame: np.ndarray, size: int) -> np.ndarray:
    """A square frame, uint8 (H, H, 3), at another size by PIL's bilinear filter, as openpi's client resizes it."""
    if frame.shape[:2] == (size, size):
        return np.ascontiguousarray(frame)
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))


def _websockets() -> Any:
    try:
        import msgpack  # noqa: F401
        import websockets.exceptions
        import websockets.sync.client
    except ImportError as error:
        raise ImportError(
            f"A policy behind a server needs the package {error.name}; it comes with {install_extra('remote')}."
        ) from error
    return websockets


def _lost() -> tuple[type[BaseException], ...]:
    """The errors that a new connection may cure."""
    return (OSError, _Absent, _websockets().exceptions.ConnectionClosed)


def _check_curable(address: str, error: BaseException) -> None:
    """Raise a PolicyError if a connection ended by what would end the next one, too."""
    codes = {side: getattr(getattr(error, side, None), "code", None) for side in ("sent", "rcvd")}
    if not {_PROTOCOL_ERROR, _NOT_TEXT, _TOO_BIG} & set(codes.values()):
        return
    if codes["rcvd"] == _TOO_BIG:
        fault = (
            "takes no request as large as an observation; raise its limit (openpi's has none), or send smaller images"
        )
    elif codes["sent"] == _TOO_BIG:
        fault = f"answers with more than {MAX_MESSAGE // 2**20} MiB; leave out of its answer what is no action"
    else:
        fault = f"and this client do not agree on the websocket's protocol ({_reason(error)}); look at its log"
    raise PolicyError(f"The server at {address} {fault}.") from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, _Absent) and error.__cause__ else error
    return str(getattr(cause, "strerror", None) or cause) or type(cause).__name__


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it sent an empty text"


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def _without_nan(value: Any) -> Any:
    """The same with texts in the place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
