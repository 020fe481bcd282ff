"""Segmentation of cine short-axis MR: ventricles and myocardium at ED and ES, function indices, and their simulator.

``heart``, ``scene``, ``acquire`` and ``simulate`` make labelled hearts. Nothing here imports dicomnode.
"""
