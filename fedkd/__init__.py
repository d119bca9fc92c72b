"""fedkd: federated learning that shares knowledge instead of data."""
