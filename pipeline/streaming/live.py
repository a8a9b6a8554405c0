"""Run the teacher inside the process that trains: no Ray, one worker."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import cast

import numpy as np

from pipeline.cluster.outcomes import Done, Failed
from pipeline.streaming.server import CALLS, ServedPart, Server
from pipeline.streaming.stream import Stream
from pipeline.streaming.window import Answer, PositionRequest
from pipeline.teachers.base import say

NAME = "live"


class LiveTransport:
    """Answer requests in threads of this process; see `pipeline.streaming.window.Transport`.

    Torch's global settings stay as they are: they belong to the training.

    Args:
        stream: what is served.
    """

    def __init__(self, stream: Stream) -> None:
        if os.environ.get("RANK", "0") == "0":  # once, however many processes train
            say(stream.notes)
        parts = [part.served and _unpinned(part.served) for part in stream.parts]
        self._server = Server(parts, name=stream.name, settle=False)
        self._server.load()
        self._pool = ThreadPoolExecutor(CALLS, thread_name_prefix=NAME)
        self._asked: set[Future[dict[str, np.ndarray]]] = set()

    def workers(self) -> Sequence[str]:
        """Name the one there is."""
        return [NAME]

    def submit(self, worker: str, request: PositionRequest) -> Hashable:
        """Ask for a micro-batch."""
        batch = request.batch
        future = self._pool.submit(self._server.serve, batch.part, batch.samples, batch.epoch)
        self._asked.add(future)
        return future

    def poll(self, timeout_s: float) -> list[Answer]:
        """Return what is done."""
        if not self._asked:
            return []
        done, self._asked = wait(self._asked, timeout=timeout_s, return_when=FIRST_COMPLETED)
        return [_event(future) for future in done]

    def forget(self, ticket: Hashable) -> None:
        """Let go of an answer."""
        future = cast("Future[dict[str, np.ndarray]]", ticket)
        future.cancel()
        self._asked.discard(future)

    def absence(self) -> str:
        """Say what is missing; the one worker never is."""
        return "the teacher of this process"

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._server.close()


def _unpinned(part: ServedPart) -> ServedPart:
    """Leave the number of threads to the training."""
    pins = replace(part.request.pins, threads=0)
    return replace(part, request=replace(part.request, pins=pins))


def _event(future: Future[dict[str, np.ndarray]]) -> Answer:
    error = future.exception()
    if error is None:
        return Done(future, future.result())
    if not isinstance(error, Exception):
        raise error
    return Failed(future, error)
