"""Training: the loop of one worker, its schedule and meter, the job description and the launch."""
