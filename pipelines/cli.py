"""The command line: ``cuckooflow validate | plan | run | job | cluster | store | serve | up | demo | log``.

Exit codes: 0 done, 1 failed, 2 usage or spec error. Beam and TensorFlow are imported only by the
commands that need them, so that ``validate`` and ``plan`` answer at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cuckooflow import __version__
from cuckooflow.errors import CuckooflowError, SpecError, named_cause
from cuckooflow.pipelines import (
    backfill_commands,
    cluster_commands,
    dlq_commands,
    experiment_commands,
    job_commands,
    log_commands,
    snapshot_commands,
    store_commands,
    train_commands,
)
from cuckooflow.runners.cluster import DEFAULT_FOLDER, LocalCluster
from cuckooflow.runners.flink_rest import find_flink

if TYPE_CHECKING:
    from cuckooflow.serving.client import ScorerClient

_HELP = "Real-time recommendation training as stateful streaming pipelines."

app = typer.Typer(add_completion=False, no_args_is_help=True, help=_HELP, pretty_exceptions_enable=False)
app.add_typer(store_commands.app, name="store")
app.add_typer(log_commands.app, name="log")
app.add_typer(backfill_commands.app, name="backfill")
app.add_typer(dlq_commands.app, name="dlq")
app.add_typer(cluster_commands.app, name="cluster")
app.add_typer(job_commands.app, name="job")
app.add_typer(snapshot_commands.app, name="snapshot")
app.add_typer(train_commands.app, name="train")
app.add_typer(experiment_commands.app, name="experiment")

SpecFile = Annotated[Path, typer.Argument(metavar="JOB.YAML", help="the job spec")]


class RunnerName(StrEnum):
    DIRECT = "direct"
    PRISM = "prism"
    FLINK = "flink"
    DATAFLOW = "dataflow"


class Dataset(StrEnum):
    MOVIELENS = "movielens"
    SIMULATOR = "simulator"


@app.command()
def validate(spec_file: SpecFile) -> None:
    """Check a job spec; every fault is printed with its line, its field and what is allowed."""
    from cuckooflow.pipelines.spec_file import load_spec

    job = load_spec(spec_file)
    print(f"{spec_file}: valid: job {job.name}, {len(job.features)} features, model {job.model.kind}")


@app.command()
def plan(
    spec_file: SpecFile,
    runner: Annotated[
        RunnerName | None, typer.Option(help="show what this runner would be given, too")
    ] = None,
    cluster: job_commands.Cluster = DEFAULT_FOLDER,
) -> None:
    """Show stages, tables, dims and options of a job. Runs nothing."""
    from cuckooflow.pipelines.options import store_config
    from cuckooflow.pipelines.plan import print_plan, print_runner
    from cuckooflow.pipelines.spec_file import load_spec

    job = load_spec(spec_file)
    console = Console(soft_wrap=True, highlight=False)
    print_plan(job, store_config(job), console)
    if runner is RunnerName.FLINK:
        from cuckooflow.pipelines.flink_run import planned

        for name in job_commands.PipelineName:
            print_runner(planned(name.value, job, LocalCluster(cluster).addresses()), console)
    elif runner is RunnerName.DATAFLOW:
        from cuckooflow.pipelines.dataflow_run import planned as planned_on_dataflow

        print_runner(planned_on_dataflow("join", job), console)
    elif runner is not None:
        from cuckooflow.pipelines.run import PRESETS

        print_runner(PRESETS[runner.value]([]), console)


@app.command()
def preview(
    spec_file: SpecFile,
    rows: Annotated[int, typer.Option(min=1, max=100_000, help="impressions to take")] = 100,
) -> None:
    """Join the first rows of a job's logs and show examples and dead letters. Writes nothing."""
    from cuckooflow.pipelines.preview import preview as show_preview
    from cuckooflow.pipelines.spec_file import load_spec

    show_preview(load_spec(spec_file), rows, Console(soft_wrap=True, highlight=False))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    pipeline: job_commands.PipelineName,
    spec_file: SpecFile,
    runner: Annotated[RunnerName, typer.Option(help="where the pipeline runs")] = RunnerName.DIRECT,
    stop_at_end: Annotated[
        bool, typer.Option("--stop-at-end", help="process what the logs hold, close every window, and stop")
    ] = False,
    hand_over: Annotated[
        Path | None,
        typer.Option(help="of the join: go on where a backfill ended, as this file of its folder says"),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="flink: return once the job runs")] = False,
    resume: Annotated[
        str | None, typer.Option(help="flink: savepoint or retained checkpoint to go on from")
    ] = None,
    cluster: job_commands.Cluster = DEFAULT_FOLDER,
    flink_rest: job_commands.Rest = None,
    replay_speed: Annotated[
        float | None,
        typer.Option(help="of the join: event time per wall second, such as 60, for logs of the past"),
    ] = None,
) -> None:
    """Run the join or the train pipeline. Options not known here go to Beam."""
    from cuckooflow.pipelines.spec_file import load_spec
    from cuckooflow.transforms.hand_over import HandOver

    unexpected = [arg for arg in context.args if not arg.startswith("-")]
    if unexpected and not any(arg.startswith("--") and "=" not in arg for arg in context.args):
        raise SpecError(f"expected options for Beam as --name=value, received {' '.join(unexpected)}")
    if hand_over is not None and (pipeline is not job_commands.PipelineName.JOIN or not hand_over.is_file()):
        raise SpecError(
            f"expected --hand-over with join and a file that a backfill wrote, received {hand_over}"
        )
    begun = None if hand_over is None else HandOver.from_bytes(hand_over.read_bytes())
    job = load_spec(spec_file)
    if replay_speed is not None:
        if pipeline is not job_commands.PipelineName.JOIN or replay_speed <= 0:
            raise SpecError(f"expected --replay-speed above 0, of the join, received {replay_speed}")
        job = job.model_copy(update={"join": job.join.model_copy(update={"replay_speed": replay_speed})})
    if runner != RunnerName.FLINK:
        if detach or resume is not None:
            raise SpecError(f"--detach and --resume are for --runner flink, received --runner {runner.value}")
        if runner == RunnerName.DATAFLOW:
            from cuckooflow.pipelines.dataflow_run import run_on_dataflow

            if stop_at_end:
                raise SpecError("expected a job that goes on, on Dataflow: leave out --stop-at-end")
            run_on_dataflow(pipeline.value, job, context.args, begun)
            return
        from cuckooflow.pipelines.run import run_pipeline

        run_pipeline(pipeline.value, job, runner.value, stop_at_end, context.args, begun)
        return
    if stop_at_end:
        raise SpecError(
            "expected a job that goes on: on Flink none ends with its logs; leave out --stop-at-end and stop the job "
            "with: cuckooflow job stop"
        )
    from cuckooflow.pipelines.flink_run import run_on_flink

    addresses = LocalCluster(cluster).addresses()
    rest = find_flink(cluster, addresses, flink_rest)
    run_on_flink(
        pipeline.value,
        job,
        addresses,
        rest,
        context.args,
        spec_file,
        resume=resume,
        detach=detach,
        hand_over=begun,
    )


@app.command()
def serve(spec_file: SpecFile) -> None:
    """Run the scorer: applies snapshots as they come and answers predict requests over HTTP."""
    from cuckooflow.pipelines.scorer import serve_job
    from cuckooflow.pipelines.spec_file import load_spec

    serve_job(load_spec(spec_file))


@app.command()
def up(spec_file: SpecFile) -> None:
    """Run store, join, train and scorer as supervised processes, until interrupted."""
    from cuckooflow.pipelines.spec_file import load_spec
    from cuckooflow.pipelines.supervisor import Supervisor, address_files
    from cuckooflow.serving.client import ScorerClient

    job = load_spec(spec_file)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    supervisor = Supervisor(spec_file, job, on_event=lambda line: print(f"up: {line}", flush=True))
    with supervisor:
        supervisor.wait_ready()
        url = f"http://{address_files(job)[1].read_text().strip()}"
        print(f"up: scorer at {url}/v1/models/{job.name}, waiting for its first snapshot", flush=True)
        scorer = ScorerClient(url, job.name)
        threading.Thread(target=_tell_first_snapshot, args=(scorer, stop), daemon=True).start()
        supervisor.run_until(stop)


def _tell_first_snapshot(scorer: ScorerClient, stop: threading.Event) -> None:
    version = 0
    while not version and not stop.wait(0.5):
        with contextlib.suppress(CuckooflowError):  # it is being started again
            version = scorer.version()
    if version:
        print(f"up: scorer answers, snapshot {version}", flush=True)
    scorer.close()


@app.command()
def demo(
    dataset: Annotated[
        Dataset, typer.Option(help="real ratings, or simulated ones without a download")
    ] = Dataset.MOVIELENS,
    folder: Annotated[Path, typer.Option("--dir", help="where the run is written; emptied first")] = Path(
        "demo-run"
    ),
) -> None:
    """The whole way once: replay two event logs through join, training and serving, and check the outcome."""
    from cuckooflow.pipelines.demo.demo import run_demo

    raise typer.Exit(run_demo(dataset.value, folder))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cuckooflow {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="show the version and stop"),
    ] = False,
) -> None:
    del version
    logging.basicConfig(
        level=os.environ.get("CUCKOOFLOW_LOG_LEVEL", "WARNING"),
        format="time=%(asctime)s level=%(levelname)s logger=%(name)s %(message)s",
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_without_trace)
    logging.getLogger("cuckooflow").setLevel(os.environ.get("CUCKOOFLOW_LOG_LEVEL", "INFO"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _without_trace(record: logging.LogRecord) -> bool:
    """Beam logs a stack with every error of a worker; of a named one, which :func:`main` tells, it says nothing."""
    if record.exc_info and record.name.startswith("apache_beam") and named_cause(record.exc_info[1]):
        record.exc_info = record.exc_text = None
    return True


def main() -> None:
    """Entry point of the ``cuckooflow`` command."""
    try:
        app()
    except SpecError as e:
        print(f"cuckooflow: {e}", file=sys.stderr)
        sys.exit(2)
    except CuckooflowError as e:
        print(f"cuckooflow: {type(e).__name__}: {e}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("cuckooflow"):
            raise
        print(
            f"cuckooflow: {e}; this command needs the extra: pip install 'cuckooflow[pipelines]'",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
