"""Kafka, Flink, Beam's job server and a Python worker pool on one machine, from package registries alone."""

from cuckooflow.runners.cluster.cluster import ALL_PARTS, ClusterAddresses, LocalCluster, PartStatus

__all__ = ["ALL_PARTS", "ClusterAddresses", "LocalCluster", "PartStatus"]
