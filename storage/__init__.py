"""Keep features: schema, commits, manifests, stores and readers (needs neither torch nor Ray)."""
