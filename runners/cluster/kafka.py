"""A Kafka broker that is its own controller (KRaft)."""

from __future__ import annotations

import base64
import subprocess
import uuid
from pathlib import Path

from cuckooflow.errors import PartFailed
from cuckooflow.runners.cluster import versions
from cuckooflow.runners.cluster.cache import tool
from cuckooflow.runners.cluster.maven import Artifact, jars
from cuckooflow.runners.cluster.part import Part
from cuckooflow.runners.cluster.place import Place
from cuckooflow.runners.cluster.ports import LOOPBACK, accepts
from cuckooflow.runners.cluster.processes import Command

_ARTIFACTS = (
    Artifact("org.apache.kafka", f"kafka_{versions.SCALA_OF_KAFKA}", versions.KAFKA),
    Artifact("org.apache.logging.log4j", "log4j-slf4j-impl", versions.LOG4J),
)
_FORMAT_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_MS = 3_000

#: Topics are created by those who use them, with the partitions that they mean; internal topics are small.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.session.timeout.ms=6000
broker.heartbeat.interval.ms=1000
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=16777216
# Replayed events carry the times that they had; by age the broker would delete them within a minute.
log.retention.ms=-1
message.max.bytes={message_max_bytes}
replica.fetch.max.bytes={message_max_bytes}
"""
_LOGGING = """\
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.name = Console
appender.console.type = Console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1} - %m%n
"""

#: Room for a message of many rows.
MESSAGE_MAX_BYTES = 8_000_000


class Kafka(Part):
    name = "kafka"
    ports = ("kafka", "kafka-controller")
    ready_timeout_s = 60.0

    def command(self, place: Place) -> Command:
        home = place.folder / "kafka"
        home.mkdir(exist_ok=True)
        lib = jars(place.cache, self.name, _ARTIFACTS)
        (home / "server.properties").write_text(
            _PROPERTIES.format(
                host=LOOPBACK,
                port=place.ports["kafka"],
                controller=place.ports["kafka-controller"],
                data=home / "data",
                message_max_bytes=MESSAGE_MAX_BYTES,
            )
        )
        (home / "log4j2.properties").write_text(_LOGGING)
        java = tool("java", "Java 17 or newer")
        if not (home / "data" / "meta.properties").exists():
            self._format(home, lib, java)
        words = [java, "-Xmx512m", f"-Dlog4j2.configurationFile={home / 'log4j2.properties'}"]
        return Command([*words, "-cp", f"{lib}/*", "kafka.Kafka", str(home / "server.properties")], home, {})

    def fetch(self, place: Place) -> None:
        jars(place.cache, self.name, _ARTIFACTS)

    def answers(self, place: Place) -> bool:
        if not accepts(place.ports["kafka"]):
            return False
        from cuckooflow.logs.kafka_python_admin import answers

        return answers(self.address(place), _ANSWER_TIMEOUT_MS)

    def address(self, place: Place) -> str:
        return f"{LOOPBACK}:{place.ports['kafka']}"

    @staticmethod
    def _format(home: Path, lib: Path, java: str) -> None:
        # An identity that begins with a dash would be taken for an option; this first byte makes none.
        identity = base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        words = [java, "-Xmx128m", "-cp", f"{lib}/*", "kafka.tools.StorageTool", "format"]
        words += ["--ignore-formatted", "-t", identity, "-c", str(home / "server.properties")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_FORMAT_TIMEOUT_S, check=False)
        if done.returncode:
            raise PartFailed(
                f"kafka: expected its data folder {home / 'data'} to be formatted, received exit code "
                f"{done.returncode}: {(done.stdout + done.stderr).strip()[-2_000:]}"
            )
