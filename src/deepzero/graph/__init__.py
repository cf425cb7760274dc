"""Difference propagation: a network's graph, and exact differences that travel through it."""
