"""The door: verbs, demo, doctor, report; imports every package and nothing imports it."""
