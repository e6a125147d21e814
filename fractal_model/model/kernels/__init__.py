"""Linear maps, attention and dropout in the fastest form for each processor and library."""
