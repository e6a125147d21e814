"""The settings in params.yaml as frozen, strict objects. No numerical library is needed."""
