"""An output in the forms that other programs read, one module per format.
Knows nothing of how the images were generated."""
