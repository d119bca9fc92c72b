"""Data sources, one per file: ``source() -> (task, train, test)``. They are deterministic and take no seed."""
