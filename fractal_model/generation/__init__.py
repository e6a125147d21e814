"""Uses of a sampler: many images, sample files, edited images and animations."""
