"""Kafka, Flink, Beam's job server and a Python worker pool on one machine, from package registries alone."""

from cuckooflow.runners.cluster.cluster import (
    ALL_PARTS,
    DEFAULT_FOLDER,
    ClusterAddresses,
    LocalCluster,
    PartStatus,
)
from cuckooflow.runners.cluster.place import ClusterOptions

__all__ = ["ALL_PARTS", "DEFAULT_FOLDER", "ClusterAddresses", "ClusterOptions", "LocalCluster", "PartStatus"]
