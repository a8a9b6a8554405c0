"""`dreamshard inspect teacher`; imports every family."""
