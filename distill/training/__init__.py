"""The training loop's parts: state, checkpoints, optimiser, log; imports `methods` and `data`."""
