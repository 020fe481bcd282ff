"""Pipelines: one module an algorithm, written against `dicomnode.pipeline` alone."""
