"""Experiments: what serving's age, a table's size and a lost shard cost, over a job's own examples."""
