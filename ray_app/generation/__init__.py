"""What is requested minus what exists becomes a plan, the plan goes through the queue, and its rows into the index.
Knows nothing of how an output is checked, queried or shown later."""
