import subprocess
import sys

from dreamshard.owner.processes import host_id, is_dead, owner


def test_this_process_lives() -> None:
    assert is_dead(owner()) is False
    assert owner().startswith(host_id() + "-")


def test_a_process_that_ended_is_dead() -> None:
    code = "from dreamshard.owner.processes import owner; print(owner())"
    text = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert text.startswith(host_id())
    assert is_dead(text) is True


def test_a_process_that_was_killed_and_not_yet_waited_for_is_dead() -> None:
    code = "from dreamshard.owner.processes import owner; print(owner(), flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    text = process.stdout.readline().strip()
    assert is_dead(text) is False
    process.kill()
    while not is_dead(text):
        pass
    process.communicate()


def test_a_reused_process_number_is_another_process() -> None:
    host, pid, _ = owner().split("-")
    assert is_dead(f"{host}-{pid}-1") is True


def test_nothing_can_be_told_of_other_hosts() -> None:
    assert is_dead("000000000000-1-1") is None
    assert is_dead("lock") is None and is_dead("") is None
    assert is_dead(f"{host_id()}-99999999999999999999-1") is True
