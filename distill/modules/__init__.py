"""Heads and regressors that are trained and dropped; imports torch only."""
