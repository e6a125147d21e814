"""One file a topic; `cli.py` registers the commands."""
