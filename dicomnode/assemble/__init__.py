"""Decides when a series is complete, and which pipelines it goes to."""
