"""Read-outs of features as pure functions: neighbours, logistic regression; imports the ground."""
