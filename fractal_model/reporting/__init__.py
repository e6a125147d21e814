"""What people look at: tables, figures and pages made from numbers and images alone.

Numbers and images come in, texts and pictures go out: no experiment tracker, scheduler or cluster
is known here.
"""
