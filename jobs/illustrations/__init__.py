"""The illustrations of README and docs: how each is made, and from what.
Run from a clone: `python -m jobs.illustrations.make`."""
