"""What is measured about a run's images.
Knows the columns of rows; the queue turns them into metrics."""

from ray_app.work_queue.metrics import Measured

MEASURED = ("encode_seconds", "write_seconds", "idle_seconds")
"""Columns that a batch's rows have for the metrics alone; the index has none of them."""

METRICS = Measured(
    ok=("images", "images generated and written"),
    failed=("failures", "images that could not be generated"),
    idle=("idle_seconds", "seconds for which actors were idle between one batch and the next"),
    seconds={
        "denoise_seconds": "seconds from the batch's start to the step, per image",
        "decode_seconds": "seconds of VAE decoding, per image",
        "encode_seconds": "seconds of encoding the pixels as jpg, png or webp, per image",
        "write_seconds": "seconds of writing the file, per image",
    },
    groups=("snapshot", "step"),
)
