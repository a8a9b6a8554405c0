import json
import socket
from pathlib import Path

import pytest

from dreamshard.console import doctor
from dreamshard.console.doctor import Check
from storage.fs import objects


def test_json_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main(["--json", "--root", str(tmp_path)])
    report = json.loads(capsys.readouterr().out)
    names = [check["name"] for check in report["checks"]]
    looked_at = {"python", "packages: base", "random streams", "cpu", "memory", "ray"}
    assert looked_at | {"storage", "clock"} <= {*names}
    storage = report["checks"][names.index("storage")]
    assert "MB/s" in storage["value"] and not list(tmp_path.iterdir())
    assert report["versions"]["numpy"] and report["next"]


def test_table_ends_with_the_next_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [
        Check("gpus", "none", "note"),
        Check("ray", "not installed", "note", "Install Ray."),
        Check("disk", "full", "fail", "Free some space."),
    ]
    monkeypatch.setattr(doctor, "examine", lambda root: checks)
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "fail  disk  full" in out
    assert out.endswith("Next: disk: Free some space.\n")
    monkeypatch.setattr(doctor, "examine", lambda root: checks[:1])
    assert doctor.main([]) == 0
    assert "nothing to fix" in capsys.readouterr().out


def test_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert doctor.check_root(str(tmp_path / "file" / "root"))[0].status == "fail"


def test_missing_extras_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "package_versions", lambda names: {})
    checks = {check.name: check for check in doctor.check_packages()}
    assert checks["packages: base"].status == "fail"
    assert checks["packages: evaluate"].advice == "Install it: pip install 'dreamshard[evaluate]'."
    assert doctor.check_ray().status == "note"


@pytest.mark.parametrize(("mode", "status"), [(None, "note"), ("token", "ok"), ("disabled", "ok")])
def test_ray_authentication_left_open_is_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str | None, status: str
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "package_versions", lambda names: {"ray": "2.60.0"})
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    check = doctor.check_ray()
    assert check.status == status and ("RAY_AUTH_MODE" in check.advice) == (mode is None)


def test_other_random_streams_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_random().status == "ok"
    monkeypatch.setattr(doctor.rng, "is_golden", lambda: False)
    assert doctor.check_random().status == "fail"


def test_a_root_on_an_object_store_is_measured_too() -> None:
    storage, clock, put = doctor.check_root("memory://doctor/data")
    assert storage.status == clock.status == "ok" and "MB/s" in storage.value
    (refused,) = doctor.check_root("ftp://there/data")
    assert refused.status == "fail" and "writable" in refused.advice
    assert put.status == "ok" and "a second put of one key was refused" in put.value


def test_a_store_that_takes_a_second_put_is_noted(monkeypatch) -> None:
    monkeypatch.setattr(objects, "prove", lambda *_a, **_k: "ignored")
    check = doctor._conditional_put("memory://doctor/data")
    assert check.status == "note" and "ignores the condition" in check.value
    assert "One run at a time" in check.advice


def test_a_clock_that_is_off_is_said() -> None:
    assert doctor._clock(0.4).status == "ok"
    off = doctor._clock(-60.0)
    assert off.status == "note" and "60.0 s ahead of the root's" in off.value and off.advice


def test_a_cluster_that_is_named_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert doctor.check_cluster() == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert doctor.check_cluster()[0].status == "ok"
    (gone,) = doctor.check_cluster()
    assert gone.status == "fail" and "ray start --head" in gone.advice
