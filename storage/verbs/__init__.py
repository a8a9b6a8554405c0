"""What a person does to datasets: ls, inspect, verify, export, gc; imports all of `storage`."""
