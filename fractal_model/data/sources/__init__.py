"""Raw images where a person keeps them: found, listed and read in place; nothing is copied."""
