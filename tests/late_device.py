"""A stand-in for a CUDA device, for what must be right in whatever order its streams run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class Stream:
    """A queue of work that runs when it is waited for: the latest that a device may run it."""

    def __init__(self, _device: object = None) -> None:
        self.queue: list[Callable[[], object]] = []

    def wait_stream(self, other: Stream) -> None:
        self.queue.append(other.synchronize)

    def synchronize(self) -> None:
        while self.queue:
            self.queue.pop(0)()


class LateDevice:
    """A device whose streams run late, and whose memory is used again as soon as it may be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compute = self.current = Stream()
        self.held: dict[int, Stream] = {}
        self.blocking = self.pageable = 0
        empty, copy, move = torch.empty, torch.Tensor.copy_, torch.Tensor.to

        @contextmanager
        def on(stream: Stream) -> Iterator[None]:
            before, self.current = self.current, stream
            yield
            self.current = before

        def pinned(*shape: Any, pin_memory: bool = False, **kind: Any) -> torch.Tensor:
            self.pageable += not pin_memory
            return empty(*shape, **kind)

        def copy_later(
            host: torch.Tensor, value: torch.Tensor, non_blocking: bool = False
        ) -> torch.Tensor:
            self.blocking += not non_blocking
            self.current.queue.append(lambda: copy(host, value))
            return host

        def to_later(host: torch.Tensor, *where: Any, non_blocking: bool = False) -> torch.Tensor:
            if where != (torch.device("cuda"),):
                return move(host, *where)
            self.blocking += not non_blocking
            result = torch.zeros_like(host)
            self.current.queue.append(lambda: copy(result, host))
            return result

        def hold(value: torch.Tensor, stream: Stream) -> None:
            self.held[value.data_ptr()] = stream

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: self.compute)
        monkeypatch.setattr(torch.cuda, "stream", on)
        monkeypatch.setattr(torch, "empty", pinned)
        monkeypatch.setattr(torch.Tensor, "copy_", copy_later)
        monkeypatch.setattr(torch.Tensor, "to", to_later)
        monkeypatch.setattr(torch.Tensor, "record_stream", hold)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: None)

    def computed(self, value: torch.Tensor) -> torch.Tensor:
        """Return a tensor that gets its value only when the computing stream runs."""
        result = torch.zeros_like(value)
        self.compute.queue.append(lambda: result.add_(value))
        return result

    def free(self, value: torch.Tensor, owner: Stream | None = None) -> None:
        """Use the memory for something else: on the stream that owns it, or that which holds it."""
        holder = self.held.get(value.data_ptr())
        (holder or owner or self.compute).queue.append(lambda: value.fill_(-1))
        self.compute.synchronize()
