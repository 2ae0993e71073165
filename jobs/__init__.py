"""Entry points: of Ray jobs (`ray job submit … -- python -m jobs.generate …`), and the training of the tiny models."""
