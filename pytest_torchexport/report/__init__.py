"""Outcomes as files for other programs."""
