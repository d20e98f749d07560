"""Messages between the pool and the processes of `worker`: numbered requests and answers.

Each message is a number and a pickle. The number says which request an answer belongs to: after Ctrl-C, an answer may
come that nobody waits for any more, and it must not be taken for another request's.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

# Kinds of answers.
DONE, FAILED = "done", "failed"
# Makes `serve` return.
CLOSE = "close"

_NUMBER_BYTES = 8
# Only exceptions from here are sent as objects: unpickling one imports its module, and OpenGL's must not be imported in
# the trainer.
_PORTABLE_PACKAGES = ("builtins", "gymnasium", "libero_gym")


class Failure(NamedTuple):
    """An exception in another process.

    Attributes:
        error: The exception; None if it cannot be sent.
        summary: Its type and message in one line.
        traceback: Its traceback there, as text.
    """

    error: Exception | None
    summary: str
    traceback: str


class Channel:
    """The asking side of a connection.

    Args:
        connection: To a process that runs `serve`.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.asked = 0  # number of the latest request

    def send(self, content: bytes) -> None:
        """Send a request, whose content `pickled` makes. Its answer will have the number ``asked``.

        Raises:
            OSError: If the other side is gone.
        """
        self.asked += 1
        self.connection.send_bytes(_numbered(self.asked, content))

    def receive(self) -> tuple[int, str, Any]:
        """Wait for the next answer: the request's number, then `DONE` and the result, or `FAILED` and a `Failure`.

        Raises:
            EOFError: If the other side is gone; or OSError.
        """
        number, content = _split(self.connection.recv_bytes())
        try:
            return number, *pickle.loads(content)
        except Exception as error:
            return number, FAILED, _failure(error)


def pickled(request: str, args: tuple[Any, ...]) -> bytes:
    """A request as it is sent.

    Raises:
        TypeError: If the arguments cannot be pickled.
    """
    try:
        return pickle.dumps((request, args))
    except Exception as error:
        raise TypeError(
            f"The arguments cannot be sent to the worker processes: {error} Give what pickle takes (no lambdas, open "
            "files or generators)."
        ) from error


def serve(connection: Connection, requests: Mapping[str, Callable[..., Any]]) -> None:
    """Answer requests until `CLOSE` comes or the other side is gone; an exception is an answer, too."""
    while True:
        try:
            number, content = _split(connection.recv_bytes())
        except (EOFError, OSError):
            return
        if content == CLOSE.encode():
            return
        try:
            request, args = pickle.loads(content)
            answer = pickle.dumps((DONE, requests[request](*args)))
        except Exception as error:
            answer = pickle.dumps((FAILED, _failure(error)))
        try:
            connection.send_bytes(_numbered(number, answer))
        except OSError:
            return


def close(connection: Connection) -> None:
    """Tell the other side to leave `serve`.

    Raises:
        OSError: If it is gone already.
    """
    connection.send_bytes(_numbered(0, CLOSE.encode()))


def _numbered(number: int, content: bytes) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "little") + content


def _split(message: bytes) -> tuple[int, bytes]:
    return int.from_bytes(message[:_NUMBER_BYTES], "little"), message[_NUMBER_BYTES:]


def _failure(error: Exception) -> Failure:
    summary = "".join(traceback.format_exception_only(error)).strip()
    text = "".join(traceback.format_exception(error))
    return Failure(error if _is_portable(error) else None, summary, text)


def _is_portable(error: Exception) -> bool:
    """Whether unpickling gives the same exception, and imports nothing that the trainer must not import."""
    if type(error).__module__.split(".")[0] not in _PORTABLE_PACKAGES:
        return False
    try:
        return str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:
        return False
