"""Teachers: one file per family behind the protocol in `base.py`."""

from pipeline.teachers.base import (
    TEACHERS,
    Mode,
    Teacher,
    TeacherConfig,
    TeacherSpec,
    describe_teacher,
    load_teacher,
    teacher_class,
)

__all__ = [
    "TEACHERS",
    "Mode",
    "Teacher",
    "TeacherConfig",
    "TeacherSpec",
    "describe_teacher",
    "load_teacher",
    "teacher_class",
]
