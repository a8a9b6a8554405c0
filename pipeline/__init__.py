"""Make features: run a frozen teacher on Ray actors and commit what it computes as shards."""
