"""Threads that wait for each other sleep: the policy is set before torch is loaded."""

from __future__ import annotations

import os

import pytest

from dreamshard.console.api.calls import as_command
from dreamshard.errors import POLICY, run_main


def seen(argv: object) -> int:
    return {"passive": 0, "active": 7}[os.environ[POLICY]]


def test_every_command_and_call_waits_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY, "")  # so that it is restored
    monkeypatch.delenv(POLICY)
    assert run_main(seen, []) == 0
    monkeypatch.delenv(POLICY)
    with as_command(["dreamshard", "train"]):
        assert os.environ[POLICY] == "passive"


def test_what_the_user_said_is_kept_here_and_in_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from pipeline.cluster.worker import worker_env

    monkeypatch.delenv(POLICY, raising=False)
    assert worker_env(2)[POLICY] == "passive"
    monkeypatch.setenv(POLICY, "active")
    assert run_main(seen, []) == 7
    assert worker_env(2)[POLICY] == "active"
