"""Ranks decide together: on one process nothing changes, on two none goes on alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import distributed

from dreamshard.errors import ConfigError, DataError, DreamshardError
from pipeline.learning import ranks
from tests.two_ranks import on_two_ranks


def fail(kind: type[Exception] = DataError) -> None:
    raise kind("the disk is gone")


def test_one_process_is_its_own_chief(tmp_path: Path) -> None:
    assert (ranks.rank_count(), ranks.this_rank()) == (1, 0)
    assert ranks.together(lambda: 3) == ranks.decided_by_chief(lambda: 3) == 3
    assert ranks.any_rank(True) and not ranks.any_rank(False)
    ranks.check_same({"seed": 1})
    ranks.check_shared(tmp_path / "run", key="run_dir")
    assert not (tmp_path / "run").exists()
    values = torch.ones(2, 3, requires_grad=True)
    assert ranks.gathered_rows(values) is values
    for ask in (ranks.together, ranks.decided_by_chief):
        with pytest.raises(DataError, match="the disk is gone"):
            ask(fail)


def _failures_reach_all(rank: int, folder: Path) -> None:
    del folder
    with pytest.raises(DreamshardError, match="the disk is gone") as caught:
        ranks.together(fail if rank == 1 else lambda: 3)
    assert isinstance(caught.value, DataError) == (rank == 1)
    assert caught.value.exit_code == 3 and ("rank 1" in str(caught.value)) == (rank == 0)
    with pytest.raises(ValueError if rank == 0 else DreamshardError, match="the disk is gone"):
        ranks.decided_by_chief(lambda: fail(ValueError))


def _chief_decides(rank: int, folder: Path) -> None:
    del folder
    asked = []
    assert ranks.decided_by_chief(lambda: asked.append(rank) or 7) == 7
    assert asked == ([0] if rank == 0 else [])
    assert ranks.together(lambda: rank) == rank
    assert ranks.any_rank(rank == 1) and not ranks.any_rank(False)


def _same_is_checked(rank: int, folder: Path) -> None:
    ranks.check_same({"seed": 1, "steps": 4})
    with pytest.raises(ConfigError, match=r"seed: got 1 on rank 1, allowed what rank 0 has: 0"):
        ranks.check_same({"seed": rank})
    ranks.check_shared(folder / "shared", key="run_dir")
    ranks.PATIENCE_S = 0.5
    with pytest.raises(ConfigError, match=r"run_dir: got .*own-0 on .*own-1 on .* for rank 1"):
        ranks.check_shared(folder / f"own-{rank}", key="run_dir")
    ranks.any_rank(False)  # rank zero has tidied up
    assert not list(folder.rglob(".ranks-*"))


def _gradients_are_those_of_the_whole_batch(rank: int, folder: Path) -> None:
    del folder
    torch.manual_seed(0)
    whole, weight = torch.randn(8, 4), torch.randn(4, 4)

    def gradient(rows: torch.Tensor, gather: bool) -> torch.Tensor:
        ours = weight.clone().requires_grad_(True)
        z = rows @ ours
        z = ranks.gathered_rows(z) if gather else z
        (z.var(dim=0).sqrt().sum() + (z.T @ z).square().mean()).backward()
        assert ours.grad is not None
        return ours.grad

    mine = gradient(whole[rank * 4 : rank * 4 + 4], gather=True)
    torch.distributed.all_reduce(mine)  # as DDP: the mean over ranks
    torch.testing.assert_close(mine / 2, gradient(whole, gather=False))


def _all(rank: int, folder: Path) -> None:
    for check in (
        _failures_reach_all,
        _chief_decides,
        _same_is_checked,
        _gradients_are_those_of_the_whole_batch,
    ):
        check(rank, folder)


def test_two_processes_agree_or_fail_together(tmp_path: Path) -> None:
    on_two_ranks(_all, tmp_path)


def _lost(rank: int, folder: Path) -> None:
    with pytest.raises(DreamshardError) as caught, ranks.alone(folder / "run", key="run_dir"):
        if rank == 1:
            os._exit(0)
        while True:
            distributed.all_reduce(torch.ones(4))
    told = str(caught.value)
    assert "rank 0: another process of this run is gone" in told and "last checkpoint" in told
    assert not list((folder / "run").glob(".lock"))


def test_a_rank_that_is_gone_is_a_sentence_to_the_others(tmp_path: Path) -> None:
    on_two_ranks(_lost, tmp_path)


def test_other_errors_are_as_they_were(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="closed by peer"), ranks.alone(tmp_path, key="run_dir"):
        raise RuntimeError("closed by peer")  # there is no other rank
