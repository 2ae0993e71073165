"""What is measured of a run's images.
Knows the columns of rows; how they become metrics is the queue's."""

from ray_app.work_queue.metrics import Measured

MEASURED = ("encode_seconds", "write_seconds", "idle_seconds")
"""Columns that a batch's rows have for the metrics alone; the index has none of them."""

METRICS = Measured(
    ok=("images", "images drawn and written"),
    failed=("failures", "images that could not be drawn"),
    idle=("idle_seconds", "seconds that actors had nothing to do, between a batch and the next"),
    seconds={
        "denoise_seconds": "seconds from the batch's start to the step, an image",
        "decode_seconds": "seconds of the VAE, an image",
        "encode_seconds": "seconds of making a jpg, png or webp of the pixels, an image",
        "write_seconds": "seconds of writing the file, an image",
    },
    groups=("snapshot", "step"),
)
