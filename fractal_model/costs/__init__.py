"""What a run costs: planned before it is started, and measured on this machine."""
