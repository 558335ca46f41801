"""Devices and processes: the mesh, what lies where on it, and runs over several hosts."""
