"""Finds neurons in two-photon calcium-imaging recordings."""

__version__ = "0.1.0"
