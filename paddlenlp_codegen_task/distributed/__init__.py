"""The same work on more than one machine: batches, evaluations and servers on Ray."""
