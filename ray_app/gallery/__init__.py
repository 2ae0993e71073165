"""Shows an output: static pages and contact sheets.
Changes no image, and no row of the index."""
