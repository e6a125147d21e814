"""The sampler: how a trained model generates images, and what makes that fast."""
