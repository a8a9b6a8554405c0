"""Run the command line with `python -m dreamshard`."""

from dreamshard.console.cli import entry

if __name__ == "__main__":
    raise SystemExit(entry())
