"""Evaluation tasks: each judges several representations, or networks, by one procedure.

A task is built as `Task(settings, seed=...)`; `describe()` says in a line what it measures,
`count(bench)` how many steps it reports, `run(bench, report=...)` returns plain values for JSON,
and `tables(result)` lays them out as text.
"""

TASKS = {
    "few_label": "distill.tasks.few_label:FewLabel",
    "linear_probe": "distill.tasks.linear_probe:LinearProbe",
    "knn": "distill.tasks.knn:Knn",
    "finetune": "distill.tasks.finetune:Finetune",
    "segmentation": "distill.tasks.segmentation:Segmentation",
    "detection": "distill.tasks.detection:Detection",
}
"""Name, also of the section of its settings -> `module:Class`; a path of your own works too."""
