"""What the local cluster is made of. One place: downloads, templates and tests read it from here."""

from __future__ import annotations

KAFKA = "4.1.0"
SCALA_OF_KAFKA = "2.13"
LOG4J = "2.24.3"
