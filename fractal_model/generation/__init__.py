"""What people do with a sampler: images in batches, sample files, edits and animations."""
