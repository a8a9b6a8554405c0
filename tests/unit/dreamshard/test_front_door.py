"""What `import dreamshard` offers in Python."""

from pathlib import Path

import numpy as np
import pytest

import dreamshard
from dreamshard.errors import ConfigError, DataError


def test_load_teacher_runs_a_micro_batch() -> None:
    teacher = dreamshard.load_teacher(
        "", kind="noise", levels=["s4"], image_size=(16, 16), micro_batch=2
    )
    images = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    batch = teacher.encode(images, np.arange(2))
    (level,) = teacher.levels
    assert level.stride == 4 and batch.levels[level.name].shape == (2, *level.shape)


def test_load_teacher_refuses_what_the_family_lacks() -> None:
    with pytest.raises(ConfigError, match="levels"):
        dreamshard.load_teacher("", kind="noise", levels=["no_such_level"])
    with pytest.raises(ConfigError, match="no_such_setting"):
        dreamshard.load_teacher("", kind="noise", levels=["s4"], no_such_setting=1)


def test_open_dataset_refuses_other_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        dreamshard.open_dataset(str(tmp_path))
