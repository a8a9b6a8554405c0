"""Schedules that once broke something; they are played always."""

KEPT = (
    # gc was stopped between its look and a removal: it took a file of a unit committed meanwhile
    "stray/56f",
    "stray/56f/147c/166c/187c",
    # gc was stopped while it removed a dataset that was pinned meanwhile
    "remove/40f",
    # gc died when the removal was final, before the folder was empty
    "remove/43c",
    "removerun/43c",
    # a run that looked about for longer than its lease lasted did not renew it meanwhile
    "removerun/5s/39d",
    # a repair died before it began, and was run again
    "repair/10c/34c/91w/189w",
)
