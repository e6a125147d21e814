"""Training as a job of a remote Ray cluster: submission, the driver on the cluster, its log and its
owner."""
