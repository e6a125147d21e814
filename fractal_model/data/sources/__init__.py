"""Find, list and read raw images where they are, without copying them."""
