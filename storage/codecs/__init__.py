"""How one level's array becomes bytes and back; imports `storage.fs` for learned bases."""
