"""The only package that imports MLflow: runs, model registry, promotion, delivery of metrics."""
