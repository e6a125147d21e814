"""Servers on one machine: Prefect, MLflow and Ray, started and stopped together.

supervisord (the library `supervisor`) starts, restarts and stops them. Decided here: all listen on
loopback alone, and all that run code ask for a secret. Only processes that we started are stopped.
They are recognised by a variable in their environment, never by their names.
"""
