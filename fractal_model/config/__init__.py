"""The settings in params.yaml as frozen, strict objects, loaded without torch."""
