"""The settings in params.yaml as frozen, strict objects; no numerical library is loaded."""
