"""Loss terms as pure functions, one file per family, each with its formula in the docstring."""
