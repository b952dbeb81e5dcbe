"""Where a Pub/Sub subscription lies. It is no log: it hands messages out, and keeps none that was acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cuckooflow.errors import ReadOnceLog, SpecError

if TYPE_CHECKING:
    from cuckooflow.logs.contract import OnceReader


class PubSubAddress(BaseModel):
    """A subscription of Google's Pub/Sub, as an input of the join and nothing else.

    It must be the join's own: another subscriber would take messages away. Credentials are the machine's (Google's
    application default credentials).

    Attributes:
        project, subscription: its name.
        endpoint: ``host:port`` of an emulator, spoken to without TLS and credentials; default Google's service, or
            what the variable ``PUBSUB_EMULATOR_HOST`` says.
        remember: how many messages are remembered to recognise one that is delivered again, default 100,000.
            One that comes again later counts twice unless the join knows its key. Costs 8 bytes each in memory and
            in what every poll writes to the state.
        unacknowledged_max: so many messages may wait for their acknowledgement, default 100,000, at most
            ``remember``; past it no more are asked for. A message waits for about two checkpoints, so this over
            that time bounds the throughput; it costs memory.
        lease_s: how long a message stays ours without word, default 60 s; it is renewed while it waits. What a killed
            worker held comes again after that long.
        read_timeout_s: how long a call may wait for an answer before the service is unavailable, default 10 s.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str = Field(pattern=r"^[a-z][-a-z0-9:.]{4,61}[a-z0-9]$")
    subscription: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9._~%+-]{2,254}$")
    endpoint: str | None = Field(default=None, pattern=r"^[^,\s:/]+:\d{1,5}$")
    remember: int = Field(default=100_000, ge=1, le=10_000_000)
    unacknowledged_max: int = Field(default=100_000, ge=1, le=10_000_000)
    lease_s: int = Field(default=60, ge=10, le=600)
    read_timeout_s: float = Field(default=10.0, gt=0.0, le=600.0)

    @model_validator(mode="after")
    def _bounded(self) -> PubSubAddress:
        if self.unacknowledged_max > self.remember:
            raise ValueError("unacknowledged_max of at most remember: what may come again must be recognised")
        return self

    @property
    def name(self) -> str:
        """The log's name."""
        return self.subscription

    @property
    def path(self) -> str:
        """As Pub/Sub names it."""
        return f"projects/{self.project}/subscriptions/{self.subscription}"

    def open_reader(self) -> OnceReader:
        """Open it for reading.

        Raises:
            LogNotFound: no such subscription.
            LogUnavailable: the service does not answer.
            SpecError: the library is not installed, or there are no credentials.
        """
        try:
            from cuckooflow.logs.pubsub_reader import PubSubReader
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("cuckooflow"):
                raise
            raise SpecError(
                f"expected the library google-cloud-pubsub for {self}, it is not installed ({error}); "
                "pip install 'cuckooflow[pubsub]'"
            ) from None
        return PubSubReader(self)

    def read_once(self, what: str) -> ReadOnceLog:
        """The error of who would read it twice, or write it."""
        return ReadOnceLog(
            f"expected a log that can be read again for {what}, received {self}: Pub/Sub keeps no message that was "
            "acknowledged; use a topic or a folder"
        )

    def __str__(self) -> str:
        return f"pubsub://{self.project}/{self.subscription}"
