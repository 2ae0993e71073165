"""Answers questions about an output: SQL on its index, and the state of its runs.
Changes nothing."""
