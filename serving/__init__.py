"""The replica that applies snapshots, and the scorer over it."""
