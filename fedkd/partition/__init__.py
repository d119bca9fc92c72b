"""Partitions, one per file: ``split(train_labels, test_labels, num_clients, rng) -> Partition``."""
