"""Checks a cluster before a run, and sends runs to it as jobs.
Knows nothing of what a job does but the flags of `generate`."""
