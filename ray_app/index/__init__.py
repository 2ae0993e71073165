"""The Parquet index of what was generated, and the records of runs: written, read, compared with the files.
Knows nothing of Ray, and nothing of how an image is generated."""
