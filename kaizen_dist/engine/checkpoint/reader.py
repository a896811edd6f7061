"""Read sharded tensors without executing code from a file.

torch.distributed.checkpoint stores its index (`.metadata`) as a pickle, and unpickles every entry
that the index calls bytes instead of a tensor: whoever writes a checkpoint could execute code where
it is read. `TensorReader` builds only the plain records of an index of tensors, and reads tensors
only from files in the same folder.
"""

import pickle
import re
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from kaizen_dist.common.errors import DataError
from kaizen_dist.common.files import open_to_read

INDEX: Final = ".metadata"
_FILE: Final = re.compile(r"__\d+_\d+\.distcp")

_RECORDS: Final = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath"},
}
"""By module, the classes an index may contain beside numbers, texts, shapes and data types."""


class TensorReader(FileSystemReader):
    """DCP's reader, restricted to tensors."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The index of the folder.

        Raises:
            DataError: if it lists anything but tensors in files of its folder.
        """
        path = Path(self.path) / INDEX
        try:
            with open_to_read(path) as file:
                metadata = _Unpickler(file).load()
            _check(metadata)
        except Exception as error:  # a damaged pickle may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{path}: not an index of tensors ({reason})") from None
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    """Builds the records of an index and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _RECORDS.get(module, ()):
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" else None
        if found is torch.Size or isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def _check(metadata: Any) -> None:
    """Raises ValueError unless all entries are tensors in files of the same folder."""
    if not isinstance(metadata, Metadata):
        raise ValueError(f"a {type(metadata).__name__}")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor")
    for info in metadata.storage_data.values():
        if not _FILE.fullmatch(info.relative_path):
            raise ValueError(f"{info.relative_path} lies elsewhere")
        if info.offset < 0 or info.length < 0 or info.transform_descriptors:
            raise ValueError(f"{info.relative_path} is not read as it stands")
