"""The scorer of a job."""

from __future__ import annotations

from cuckooflow.pipelines.job_spec import JobSpec, MessageSpec
from cuckooflow.pipelines.log_specs import FilesLogSpec, PubSubLogSpec
from cuckooflow.pipelines.options import column_type
from cuckooflow.pipelines.supervisor import address_files
from cuckooflow.serving.impressions import ImpressionOptions
from cuckooflow.serving.serve import ServeOptions, serve
from cuckooflow.serving.times import TimeFormat


def serve_job(job: JobSpec) -> None:
    """Serve the job's snapshots until SIGTERM; it can log what it served to the impressions log.

    Impressions are logged where the join's key is a request and an item: the first key column takes the
    request id. They go to the log's last partition, which is then the scorer's own. It writes flat JSON, so where
    the log's messages are others, or the impressions no log that it can write, requests to log are refused.
    """
    time_column = job.columns.impressions[job.join.impression_time]
    other = isinstance(job.logs.impressions, FilesLogSpec | PubSubLogSpec)
    log = None if other else job.address(job.logs.impressions)
    flat = job.messages.impressions == MessageSpec() and not any(
        column.path for column in job.columns.impressions.values()
    )
    serve(
        ServeOptions(
            name=job.name,
            snapshots=job.path(job.serving.mirror or job.snapshots.dir),
            mirror_of=None if job.serving.mirror is None else job.snapshots_log(),
            listen=job.serving.listen,
            rows=job.serving.rows,
            address_file=address_files(job)[1],
            impressions=ImpressionOptions(
                log=log if flat else None,
                partition=0 if log is None else log.partitions - 1,
                request_column=job.join.key[0],
                time_column=job.join.impression_time,
                time_format=TimeFormat.from_type(column_type(time_column)),
            ),
        )
    )
