"""An object store in memory, as Beam's file systems are asked: importing it is enough for ``bucket://`` to work."""

from __future__ import annotations

import io
from typing import ClassVar

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem


class Bucket(FileSystem):
    """An object store in memory: no folders, and no renaming over what is there."""

    objects: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def scheme(cls) -> str:
        return "bucket"

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        pass

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        for path, content in sorted(self.objects.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(content), 0.0)

    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO):  # noqa: ARG002
        return _Object(path)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):  # noqa: ARG002
        return io.BytesIO(self.objects[path])

    def copy(self, source_file_names, destination_file_names):
        for a, b in zip(source_file_names, destination_file_names, strict=True):
            self.objects[b] = self.objects[a]

    def rename(self, source_file_names, destination_file_names):
        for a, b in zip(source_file_names, destination_file_names, strict=True):
            if a not in self.objects or b in self.objects:
                raise BeamIOError(f"cannot rename {a} to {b}")
            self.objects[b] = self.objects.pop(a)

    def exists(self, path):
        return path in self.objects or any(name.startswith(path.rstrip("/") + "/") for name in self.objects)

    def size(self, path):
        return len(self.objects[path])

    def last_updated(self, path):  # noqa: ARG002
        return 0.0

    def checksum(self, path):
        return str(len(self.objects[path]))

    def metadata(self, path):
        return FileMetadata(path, self.size(path), 0.0)

    def delete(self, paths):
        for path in paths:
            gone = [n for n in self.objects if n == path or n.startswith(path.rstrip("/") + "/")]
            if not gone:
                raise BeamIOError(f"nothing at {path}")
            for name in gone:
                del self.objects[name]


class _Object(io.BytesIO):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            Bucket.objects[self._path] = self.getvalue()
        super().close()
