"""Encoders that were trained for generators without one; imports `teachers.gan` and `timm`."""
