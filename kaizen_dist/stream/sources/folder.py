"""`folder:PATH`: class folders in a folder, a .tar or a .tar.gz, see class_folders.py."""

from pathlib import Path

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.files.class_folders import read_class_folders
from kaizen_dist.stream.files.file_tree import gzip_digest, open_tree
from kaizen_dist.stream.sources.base import Source, SourceKind, absolute


class FolderSource(SourceKind):
    """`train/CLASS/**` with `val/CLASS/**` or `test/CLASS/**`, or `CLASS/**`."""

    usage = "folder:PATH"
    read = staticmethod(read_class_folders)

    def open(self, spec: str, argument: str, work: Path, progress: bool) -> Source:
        """As `SourceKind.open`."""
        return self.read(spec, open_tree(Path(argument), work, progress))

    def resolve(self, argument: str) -> str:
        """As `SourceKind.resolve`."""
        return absolute(argument)

    def stamp(self, spec: str, argument: str, source: Source | None) -> str | None:
        """Of names and sizes of the images, or the checksum in a compressed tar; None for a source
        that is gone."""
        path = Path(argument)
        if not path.exists():
            return None
        try:
            if path.is_file() and (digest := gzip_digest(path)):
                return digest
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        return (source or self.open(spec, argument, path, progress=False)).fingerprint()
