"""Threads that fill ahead: in order, bounded, never hanging, errors where they belong."""

import gc
import os
import threading
import time
from collections.abc import Callable

import pytest

from dreamshard.errors import DreamshardError
from storage.batches.prefetch import Prefetcher

Fill = Callable[[int, int, list[int]], None]


def prefetcher(fill: Fill, *, parts: int = 2, threads: int = 2, ahead: int = 2) -> Prefetcher:
    return Prefetcher(
        fill=fill, slot_of=lambda number: [number], parts=parts, threads=threads, ahead=ahead
    )


def mark(number: int, part: int, slot: list[int]) -> None:
    time.sleep(0.0005 * ((number * 7 + part * 3) % 4))
    slot.append(part)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 4])
def test_batches_come_whole_and_in_order(parts: int, threads: int, ahead: int) -> None:
    source = prefetcher(mark, parts=parts, threads=threads, ahead=ahead)
    for number in range(30):
        slot = source.next()
        assert slot[0] == number
        assert sorted(slot[1:]) == list(range(parts))
    source.close()


def test_no_more_than_so_many_are_filled_ahead() -> None:
    started: list[int] = []
    source = prefetcher(lambda number, part, slot: started.append(number), ahead=3)
    time.sleep(0.05)
    assert set(started) == {0, 1, 2}
    source.next()
    time.sleep(0.05)
    assert set(started) == {0, 1, 2, 3}
    source.close()


def test_an_error_surfaces_at_its_own_batch_and_again() -> None:
    def fill(number: int, part: int, slot: list[int]) -> None:
        mark(number, part, slot)
        if number == 5 and part == 1:
            raise OSError("disk on fire")

    source = prefetcher(fill, threads=3, ahead=4)
    assert [source.next()[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(OSError, match="disk on fire"):
            source.next()
    source.close()


def test_an_error_while_finding_room_surfaces() -> None:
    def slot_of(number: int) -> list[int]:
        if number == 2:
            raise MemoryError("no room")
        return [number]

    source: Prefetcher[list[int]] = Prefetcher(
        fill=mark, slot_of=slot_of, parts=2, threads=2, ahead=3
    )
    assert [source.next()[0] for _ in range(2)] == [0, 1]
    with pytest.raises(MemoryError, match="no room"):
        source.next()
    source.close()


def test_close_ends_the_threads_whatever_they_wait_for() -> None:
    before = threading.active_count()
    for taken in range(4):
        source = prefetcher(mark)
        for _ in range(taken):
            source.next()
        source.close()
        source.close()
        with pytest.raises(DreamshardError, match="after close"):
            for _ in range(5):
                source.next()
    assert threading.active_count() == before


def test_a_consumer_that_waits_is_released_by_close() -> None:
    gate = threading.Event()
    source = prefetcher(lambda number, part, slot: gate.wait(5) and None)
    caught: list[BaseException] = []

    def consume() -> None:
        try:
            source.next()
        except DreamshardError as error:
            caught.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    time.sleep(0.02)
    source.stop()
    consumer.join(2)
    gate.set()
    source.close()
    assert len(caught) == 1


def test_waiting_is_counted() -> None:
    source = prefetcher(lambda number, part, slot: time.sleep(0.3), parts=1, threads=1, ahead=1)
    source.next()
    first = source.wait_s
    assert first >= 0.02
    time.sleep(0.6)
    source.next()
    assert source.wait_s - first < 0.2
    source.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_instead_of_hanging() -> None:
    source = prefetcher(mark)
    child = os.fork()
    if child == 0:
        try:
            source.next()
        except DreamshardError as error:
            source.close()
            os._exit(17 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert source.next()[0] == 0
    source.close()
    gc.collect()
