"""Event logs: partitions of messages with offsets, one contract for local folders and brokers."""
