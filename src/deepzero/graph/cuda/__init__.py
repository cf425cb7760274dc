"""Kernels for NVIDIA GPUs, written in Triton: the counterpart of ``graph/cpu/``."""
