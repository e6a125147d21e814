"""Training as a job of a remote Ray cluster: submission, driver, log and owner of a job."""
