"""Evaluation tasks: each judges several representations, or networks, by one procedure.

A task is built as `Task(settings, seed=...)`; `describe()` says in a line what it measures,
`count(bench)` how many steps it reports, `run(bench, report=...)` returns plain values for JSON,
and `tables(result)` lays them out as text.
"""
