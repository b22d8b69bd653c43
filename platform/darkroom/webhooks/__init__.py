"""Telling other servers what became of a job: signed, in order, again and again until they have taken it.

Fed from the history of the jobs alone. Knows no HTTP but the one POST; the web room has the routes.
"""
