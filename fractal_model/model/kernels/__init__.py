"""The model's inner products, attention and dropout, written for one processor or library; the
model calls them like torch's own."""
