"""An OUTPUT's files: every name and path, what can be read and written there, on a filesystem or in an object store.
Knows nothing of rows, runs or images."""
