"""Reading sharded tensors without running what a file says.

torch.distributed.checkpoint keeps its index (`.metadata`) as a pickle, and reads with pickle
whatever the index calls bytes instead of a tensor: whoever writes a checkpoint could run code
where it is read. `TensorReader` builds nothing from the index but the plain records that an index
of tensors is made of, and takes tensors from files beside it only.
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
"""By module, what may stand in an index beside numbers, texts, shapes and data types."""


class TensorReader(FileSystemReader):
    """As DCP has it, of tensors alone."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """What lies in the folder.

        Raises:
            DataError: if the index is none of plain tensors in files of its folder.
        """
        path = Path(self.path) / INDEX
        try:
            with open_to_read(path) as file:
                metadata = _Unpickler(file).load()
            _check(metadata)
        except Exception as error:  # what a damaged pickle raises is anything
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
    """That all entries are tensors, of files in the same folder. Raises ValueError."""
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
