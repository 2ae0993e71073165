"""Batches of work go through a pool of Ray actors, and their rows come back, even if workers or nodes die.
Knows neither images nor models: batches and rows are Arrow tables, the work is a class."""
