"""What the local cluster is made of. One place: downloads, templates and tests read it from here."""

from __future__ import annotations

KAFKA = "4.1.0"
SCALA_OF_KAFKA = "2.13"
LOG4J = "2.24.3"

#: Python's package of Flink's jars: the same files as Flink's own distribution, without its scripts.
FLINK_PACKAGE = "apache-flink-libraries"
FLINK = "1.19.3"
FLINK_SHA256 = "4a58e3a1fb7d83340bc96b6c080624c6d792d69fae5d294b96224775204a9c60"

#: Beam's runner for this Flink, the newest that Maven has, and the server in front of it.
FLINK_LINE = "1.19"
BEAM_FLINK_RUNNER = "2.70.0"
BEAM_JOB_SERVICE = "2.65.0"
#: The same 2.x as the slf4j-api that the runner brings: a 1.7 binding would be passed over, and log nothing.
SLF4J = "2.0.16"
