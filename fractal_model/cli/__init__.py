"""The commands of the command line, with one module for each command or group of commands."""
