"""Entry points of Ray jobs: `ray job submit … -- python -m jobs.generate …`.
The folders benchmarks and training are run from a clone; they are neither packaged nor shipped to a cluster."""
