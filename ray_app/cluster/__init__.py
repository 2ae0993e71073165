"""Ray: the connection to a cluster, what its nodes and its autoscaler offer, and what works around Ray itself.
Knows nothing of what a run does with it."""
