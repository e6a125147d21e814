"""The Python object with which a program loads a model and samples, edits and measures images."""
