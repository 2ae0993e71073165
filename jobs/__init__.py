"""Thin entry points for a Ray cluster: `ray job submit --working-dir . -- python -m jobs.generate …`."""
