"""Tests mirror the package; run them with `make test`."""
