"""The native core is called through the classes beside it, which give its types."""

from typing import Any

def __getattr__(name: str) -> Any: ...
