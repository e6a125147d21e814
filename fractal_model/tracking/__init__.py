"""The only room that imports MLflow: runs, the model registry, promotion, and delivery of
metrics."""
