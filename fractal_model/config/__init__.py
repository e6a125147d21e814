"""params.yaml as frozen, strict objects: one file a section, read once by `params.load_params`; no
numerical library is imported."""
