"""Runs jobs: one dispatcher decides what starts, one warm process per slot computes."""
