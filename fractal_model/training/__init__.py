"""Training: one worker's loop, its schedule and meter, the job that describes it, and how it is
launched."""
