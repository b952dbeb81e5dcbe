"""A user's own model: the one :class:`~cuckooflow.models.base.Model` of a Python file.

The file's text is a part of the model's spec, so it goes where the spec goes: to workers, and with each
snapshot to scorers. Who may write a job spec or its snapshots may run code there.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import types

from cuckooflow.errors import SpecError
from cuckooflow.models.base import Model


@functools.cache
def own_model(file: str, code: str) -> type[Model]:
    """The class that a file defines.

    Args:
        file: its name, for messages and tracebacks.
        code: its text. It runs once in a process; it should import TensorFlow where it needs it, in ``forward``
            (:func:`~cuckooflow.models.base.tensorflow`), as the store's process has none.

    Raises:
        SpecError: it does not run, or defines no model or several.
    """
    name = f"cuckooflow_own_model_{hashlib.sha256(code.encode()).hexdigest()[:16]}"
    module = types.ModuleType(name)
    module.__file__ = file
    # Before it runs: dataclasses and pickle look their module up.
    sys.modules[name] = module
    try:
        exec(compile(code, file, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise SpecError(f"expected {file} to run, received {_where(error, file)}") from error
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Model) and value.__module__ == name
    ]
    models = [model for model in found if not inspect.isabstract(model)]
    if len(models) != 1:
        shown = ", ".join(model.__name__ for model in models) or "none"
        unfinished = "".join(
            f"; {model.__name__} lacks {', '.join(sorted(model.__abstractmethods__))}"
            for model in found
            if model not in models
        )
        raise SpecError(
            f"expected {file} to define one class that extends cuckooflow.models.base.Model, received {shown}{unfinished}"
        )
    return models[0]


def _where(error: Exception, file: str) -> str:
    """The error and the line of the file in which it arose."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    at = "" if line is None else f" at line {line}"
    return f"{type(error).__name__}: {error}{at}"
