"""Parts of `dreamshard interpret`: the loss, and the features that an interpreter is fitted to."""
