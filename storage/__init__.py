"""Keep features: shards, their ledger and their readers; imports `dreamshard`, neither torch nor
Ray.
"""
