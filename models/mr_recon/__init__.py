"""MR reconstruction from raw k-space: linear, compressed sensing and learned, on torch.

Conventions of the whole package: tensors are ``complex64``; images are (..., row, column) with the phase encoding along
rows (y) and the readout along columns (x); k-space is (..., coil, ky, kx) with its centre at index N // 2; Fourier
transforms are orthonormal.
"""
