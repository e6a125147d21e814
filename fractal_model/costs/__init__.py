"""What a run costs, computed before it is started."""
