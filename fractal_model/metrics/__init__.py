"""Metrics of generated images: Inception features, distances between sets, class agreement.

Numbers come out, nothing is stored: no experiment tracker, scheduler or cluster is known here.
"""
