"""In order, nothing lost, nothing twice, bounded: whatever happens to the workers."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamshard.errors import DataError, TeacherError
from pipeline.streaming.order import MicroBatch
from pipeline.streaming.window import MAX_DEATHS, POLL_S, PositionRequest, Window
from tests.unit.pipeline.streaming.fakes import FakeTransport, Fault


def requests() -> Iterator[PositionRequest]:
    for number in itertools.count():
        yield PositionRequest(
            number, MicroBatch(0, 0, number * 4, np.arange(number * 4, number * 4 + 4))
        )


def window(transport: FakeTransport, **settings: object) -> Window:
    chosen: dict = {"size": 4, "clock": transport.clock, **settings}
    return Window(transport, requests(), **chosen)


def pull(source: Window, count: int) -> list[int]:
    return [int(source.next()["index"][0]) for _ in range(count)]


FAULTS = st.dictionaries(
    st.integers(0, 60),
    st.one_of(
        st.just(Fault("die")),
        st.just(Fault("hang")),
        st.builds(Fault, st.just("slow"), st.floats(0.1, 30.0)),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(faults=FAULTS, workers=st.integers(1, 4), size=st.integers(1, 9))
def test_the_sequence_is_that_of_an_undisturbed_run(
    faults: dict[int, Fault], workers: int, size: int
) -> None:
    transport = FakeTransport("abcd"[:workers], faults=dict(faults))
    if workers == 1:  # a pause of the only one there is cannot be hidden
        transport.faults = {n: f for n, f in faults.items() if f.kind == "die"}
    source = window(transport, size=size)
    held = 0
    for number in range(40):
        found = source.next()
        assert found["index"].tolist() == list(range(number * 4, number * 4 + 4))
        held = max(held, source.held)
    assert held <= size
    # A request is at two workers at most per deadline missed: memory stays within four windows.
    assert len(transport.asked) <= 40 + size + source.retries


@pytest.mark.parametrize("workers", ["a", "ab"])
def test_an_answer_lost_at_every_worker_is_asked_for_again(workers: str) -> None:
    transport = FakeTransport(workers)
    source = window(transport, size=1)
    pull(source, 3)  # by now the usual time is known
    for number in range(3, 3 + len(workers)):  # the next request, and the second try of it
        transport.faults[number] = Fault("hang")
    before = transport.now
    assert pull(source, 5) == [12, 16, 20, 24, 28]
    assert transport.now - before < 10.0


def test_the_window_is_full_and_never_more_than_full() -> None:
    transport = FakeTransport()
    source = window(transport, size=6)
    source.step()
    assert (len(transport.asked), source.held) == (6, 6)
    for _ in range(20):  # the answers come, nobody takes them
        source.step(POLL_S)
    assert (len(transport.asked), source.held) == (6, 6)
    assert source.take() is not None
    source.step()
    assert len(transport.asked) == 7


def test_both_workers_get_their_share() -> None:
    transport = FakeTransport("abc")
    pull(window(transport, size=6), 60)
    counts = [sum(name == who for name, _ in transport.asked) for who in "abc"]
    assert max(counts) - min(counts) <= 3


def test_a_death_is_hidden_within_two_seconds() -> None:
    transport = FakeTransport(faults={10: Fault("die")}, back_s=60.0)
    source, waits = window(transport, size=8), []
    for _ in range(40):
        before = transport.now
        source.next()
        waits.append(transport.now - before)
    assert max(waits) < 0.5 and source.retries >= 1


def test_a_lost_node_is_hidden_by_the_deadline() -> None:
    """Nobody says that it died: its answers just never come."""
    transport = FakeTransport()
    source, waits = window(transport, size=8), []
    for number in range(60):
        if number == 20:
            for ticket, (_, owner, _) in list(transport.flying.items()):
                if owner == "a":
                    del transport.flying[ticket]
            transport.free["a"] = 1e9
        before = transport.now
        source.next()
        waits.append(transport.now - before)
    assert max(waits) <= 2.0
    assert [name for name, _ in transport.asked[-10:]] == ["b"] * 10, "nobody asks the silent one"


def test_each_further_worker_is_given_twice_the_time() -> None:
    transport = FakeTransport("abc", faults={0: Fault("hang"), 1: Fault("hang")})
    pull(window(transport, size=1, deadline_s=1.0), 1)
    assert [name for name, _ in transport.asked] == ["a", "b", "c"]
    assert transport.times[:3] == pytest.approx([0.0, 1.0, 3.0], abs=2 * POLL_S)


def test_the_only_worker_is_asked_again_after_every_few_deadlines() -> None:
    transport = FakeTransport("a", faults={0: Fault("hang"), 1: Fault("hang")})
    pull(window(transport, size=1, deadline_s=1.0), 1)
    # Three deadlines missed, then asked again; that one has twice the time, and misses three more.
    assert transport.times[:3] == pytest.approx([0.0, 4.0, 9.0], abs=5 * POLL_S)


def test_a_worker_that_was_late_and_a_new_one_of_its_name_share_alike() -> None:
    transport = FakeTransport("ab", faults={3: Fault("hang")})
    source = window(transport, size=4, deadline_s=1.0)
    pull(source, 20)
    silent = {name for name, _ in transport.asked} - {name for name, _ in transport.asked[-8:]}
    assert len(silent) == 1, "the late one is not asked any more"
    (name,) = silent
    transport.away[name] = transport.noticed[name] = transport.now + 0.2  # it is started anew
    pull(source, 40)
    recent = [who for who, _ in transport.asked[-20:]]
    assert abs(recent.count("a") - recent.count("b")) <= 3


def test_late_answers_do_not_count_as_work_for_ever() -> None:
    faults = {number: Fault("slow", 5.0) for number in range(0, 12, 2)}
    transport = FakeTransport("ab", faults=faults)
    source = window(transport, size=12, deadline_s=0.5)
    pull(source, 60)
    source._suspects.clear()
    pull(source, 60)
    recent = [who for who, _ in transport.asked[-40:]]
    assert abs(recent.count("a") - recent.count("b")) <= 4


def test_where_all_were_late_who_answers_is_trusted_again() -> None:
    transport = FakeTransport("ab", faults={0: Fault("hang"), 1: Fault("hang")})
    source = window(transport, size=1, deadline_s=1.0)
    pull(source, 1)
    (answered,) = {name for name, _ in transport.asked[2:3]}
    pull(source, 10)
    assert {name for name, _ in transport.asked[3:]} == {answered}


def test_duplicates_are_let_go() -> None:
    transport = FakeTransport(faults={3: Fault("slow", 90.0)})
    source = window(transport, deadline_s=1.0)
    pull(source, 200)
    assert 3 in transport.held
    transport.now = 100.0
    assert pull(source, 1) == [800] and 3 not in transport.held


def test_home_is_kept_while_it_lives() -> None:
    transport = FakeTransport("abc")
    batches = (r for r in requests())
    wanted = (PositionRequest(r.number, r.batch, home=r.number // 8) for r in batches)
    source = Window(transport, wanted, size=6, clock=transport.clock)
    pull(source, 48)
    homes = {r.number // 8: set() for _, r in transport.asked}
    for name, request in transport.asked:
        homes[request.number // 8].add(name)
    assert all(len(names) == 1 for names in homes.values())
    assert len(set.union(*homes.values())) == 3


def test_a_passing_failure_is_tried_elsewhere_and_a_lasting_one_is_told() -> None:
    transport = FakeTransport(faults={2: Fault("fail")})
    assert pull(window(transport), 10) == list(range(0, 40, 4))
    transport = FakeTransport(faults={n: Fault("fail") for n in range(2, 200)})
    with pytest.raises(TeacherError, match=r"samples \[8, 9, 10\]..., tried 3 times: OSError"):
        pull(window(transport, size=3), 10)


def test_the_pipelines_own_errors_are_not_tried_again() -> None:
    transport = FakeTransport(faults={0: Fault("fail")}, error=DataError("no usable image"))
    with pytest.raises(DataError, match="no usable image"):
        pull(window(transport), 1)


def test_samples_that_kill_every_actor_are_named() -> None:
    transport = FakeTransport("abcd", faults={n: Fault("die") for n in range(999)}, back_s=0.01)
    with pytest.raises(TeacherError, match=f"{MAX_DEATHS} actors died over samples .*micro_batch"):
        pull(window(transport, size=1), 1)


def test_it_says_what_it_waits_for_and_gives_up_in_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transport = FakeTransport(faults={5: Fault("die"), 6: Fault("die")}, back_s=12.0)
    source = window(transport)
    with caplog.at_level(logging.WARNING):
        assert pull(source, 40) == list(range(0, 160, 4)), "both died, both came back"
    assert "waiting for the fakes (5 s; giving up after 600 s)" in caplog.text
    transport = FakeTransport(faults={5: Fault("die"), 6: Fault("die")}, back_s=1e6)
    caplog.clear()
    with pytest.raises(TeacherError, match="patience_s = 20. the fakes"):
        pull(window(transport, patience_s=20.0), 40)
    told = [line for line in caplog.messages if line.startswith("waiting for the fakes")]
    assert len(told) == 2, "after 5 and after 10 seconds"


def test_patience_counts_from_when_workers_were_last_there() -> None:
    transport = FakeTransport(faults={9: Fault("die"), 10: Fault("die")}, back_s=6.0)
    source = window(transport, patience_s=20.0)
    pull(source, 4)
    transport.now += 100.0  # the trainer was busy with something else
    assert pull(source, 40) == list(range(16, 176, 4))


def test_nothing_to_ask_for_is_no_reason_to_stop() -> None:
    def sparse() -> Iterator[PositionRequest | None]:
        for request in requests():
            yield None
            yield request

    transport = FakeTransport()
    source = Window(transport, sparse(), size=4, clock=transport.clock)
    assert pull(source, 10) == list(range(0, 40, 4))


def test_close_lets_go_of_everything() -> None:
    transport = FakeTransport()
    source = window(transport)
    source.step()
    source.close()
    assert not transport.held and transport.closed
