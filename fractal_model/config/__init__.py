"""params.yaml as frozen, strict objects, one file a section, without any numerical library."""
