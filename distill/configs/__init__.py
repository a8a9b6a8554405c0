"""Settings by part; `distill.configs.train` puts them together. No torch here."""
