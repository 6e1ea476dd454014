"""Meshes of devices, and training in several processes."""
