"""Query files become the slots that they request, one module per format.
Knows nothing of what exists already, nor of how an image is generated."""
