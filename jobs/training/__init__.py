"""How the tiny models that the package ships were trained, from a clone: `python -m jobs.training.train`."""
