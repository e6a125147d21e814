"""The sampler, which generates images with a trained model, and the code that makes it fast."""
