"""The command `features`: every image's and text's vector, encoded once, in Parquet parts under OUTPUT/features.
Knows what is to be encoded and what exists; how a batch gets to a worker and back is the queue's."""
