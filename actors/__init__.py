"""What runs on a GPU worker: a recipe becomes a pipeline, prompts become step-tagged images."""
