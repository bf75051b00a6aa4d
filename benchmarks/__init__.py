"""Measurements of this project beside its peers, each a command that prints or writes what it found.

May import every room; no room imports it.
"""
