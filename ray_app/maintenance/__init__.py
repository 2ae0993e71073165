"""Keeps an output valid: checks and repairs it, removes images, compacts the index.
Knows nothing of who reads the output, and starts no Ray."""
