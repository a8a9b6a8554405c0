"""Images in: sources, decoding, cropping; imports `teachers.base`."""
