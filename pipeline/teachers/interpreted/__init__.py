"""A teacher whose features an interpreter turns into soft labels; imports `teachers.base`."""
