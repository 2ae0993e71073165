"""What is measured of a run's vectors.
Knows the columns of rows; how they become metrics is the queue's."""

from ray_app.work_queue.metrics import Measured

METRICS = Measured(
    ok=("features", "images and texts encoded"),
    failed=("feature_failures", "images and texts that could not be encoded"),
    idle=("feature_idle_seconds", "seconds that encoders had nothing to do, between one batch and the next"),
    seconds={"feature_seconds": "seconds of the encoder, per image or text"},
)
