"""Parts of the online pipeline; `pipeline/stream.py` puts them together.

Reading order: config (settings), order (which samples a position stands for), window (ask for
micro-batches, in order, whatever dies), server (answer one request), actors (Ray) and live (no
Ray), keeper (commit what is streamed).
"""
