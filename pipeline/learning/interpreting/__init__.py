"""Train an interpreter of a teacher's features; imports `teachers` and `images`."""
