"""One model measured by a written protocol: likelihood, samples, their metrics, and the rules that
decide between models."""
