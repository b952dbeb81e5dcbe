"""cuckooflow: real-time recommendation training as stateful streaming pipelines."""

__version__ = "0.1.0"
