"""Linear maps, attention and dropout in the fastest form for each processor or library. The model
calls them like torch's own."""
