"""Beam's Prism runner: a local portable runner, so what passes here is a real Beam pipeline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.prism_runner import PrismRunner
from apache_beam.runners.runner import PipelineRunner

from cuckooflow.errors import SpecError
from cuckooflow.runners.preset import RunnerPreset

VERSION = "v2.77.0"
#: Prism splits a bundle that is slow, a stateful DoFn's too: it hands the rest of a key's elements to another bundle while
#: the first one still has the key, and the writes to state of one of the two are lost (seen with 2.77). No source here splits.
_NO_SPLITS = "--experiments=prism_disable_sdf_split"
INSTALL = f"go install github.com/apache/beam/sdks/v2/go/cmd/prism@{VERSION}"


def find_prism() -> Path | None:
    """Prism's binary: ``.cache/bin`` below the working folder, the PATH, or Go's bin folder."""
    gopath = Path(os.environ.get("GOPATH") or Path.home() / "go")
    local, go = Path(".cache/bin/prism"), gopath / "bin/prism"
    on_path = shutil.which("prism")
    candidates = [local, *([Path(on_path)] if on_path else []), go]
    return next((path.resolve() for path in candidates if os.access(path, os.X_OK)), None)


def preset(beam_args: Sequence[str]) -> RunnerPreset:
    """Prism with a Python worker in this process (loopback).

    Raises:
        SpecError: no binary was found and ``--prism_location`` was not given.
    """
    args = ["--no_save_main_session", "--environment_type=LOOPBACK", "--streaming", _NO_SPLITS, *beam_args]
    if not any(arg.startswith("--prism_location") for arg in beam_args):
        binary = find_prism()
        if binary is None:
            raise SpecError(
                f"expected Prism on the PATH or with --prism_location, found none; install it with: {INSTALL}"
            )
        args.append(f"--prism_location={binary}")

    def runner() -> PipelineRunner:
        return PrismRunner()

    return RunnerPreset(
        name="prism", make_runner=runner, options=PipelineOptions(args), front_end="splittable"
    )
