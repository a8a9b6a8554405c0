"""Evaluation tasks: each judges several representations of the same images by one procedure."""

TASKS = {"few_label": "distill.tasks.few_label:FewLabel"}
