"""Settings by part; `distill.config` puts them together. No torch here."""
