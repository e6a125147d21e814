"""Servers on one machine: Prefect, MLflow and Ray, started and stopped together.

supervisord (the library `supervisor`) starts, restarts and stops them. Decided here: all listen on
loopback alone, Ray asks for a token, and what is stopped is what was started, known by a mark in
its environment and never by its name.
"""
