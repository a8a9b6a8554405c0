"""Train an encoder for a generator that has none; imports `adversarial`'s loop and `teachers`."""
