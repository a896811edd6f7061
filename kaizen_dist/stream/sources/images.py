"""`images:PATH`: images without labels in a folder, a .tar or a .tar.gz, at any depth."""

import numpy as np

from kaizen_dist.common.formatting import plural
from kaizen_dist.stream.files import listing
from kaizen_dist.stream.files.file_tree import FileTree
from kaizen_dist.stream.files.listing import Faults
from kaizen_dist.stream.files.name_list import sort_by_name
from kaizen_dist.stream.images import is_image_name
from kaizen_dist.stream.index import UNLABELLED
from kaizen_dist.stream.numbers import compact
from kaizen_dist.stream.sources.base import NO_DOMAIN, Source
from kaizen_dist.stream.sources.folder import FolderSource


def read_images(spec: str, tree: FileTree) -> Source:
    """All images in the order of their names. Raises DataError where there are none."""
    faults = Faults()
    for folder in sorted(tree.closed):
        faults.add(listing.CLOSED, f"{folder} {tree.closed[folder]}")
    is_image = (is_image_name(name.rpartition("/")[2]) for name in tree.names)
    chosen = compact(np.flatnonzero(np.fromiter(is_image, bool, len(tree.names))))
    if not len(chosen):
        raise listing.nothing(tree, "no images in it", faults)
    sort_by_name(chosen, tree.names.__getitem__)
    count = len(chosen)
    return Source(
        spec=spec,
        classes=[],
        domains=[],
        labels=np.full(count, UNLABELLED),
        domains_of=np.full(count, NO_DOMAIN),
        is_val=np.zeros(count, bool),
        images=tree.images(chosen),
        ignored=len(tree.names) - count + len(tree.passed_over) + len(tree.closed),
        sizes=tree.sizes[chosen],
        told=(f"{plural(count, 'image')} without labels", *listing.unused(tree, chosen)),
        faults=faults.lines(),
    )


class ImagesSource(FolderSource):
    """`**`."""

    usage = "images:PATH"
    read = staticmethod(read_images)
