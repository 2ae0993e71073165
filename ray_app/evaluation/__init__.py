"""Which step is enough: measures the images of an output against each other.
Knows nothing of how the images were generated."""
