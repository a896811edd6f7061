"""`domains:PATH`: folders of domains in a folder, a .tar or a .tar.gz, see class_folders.py."""

from kaizen_dist.stream.files.class_folders import read_domain_folders
from kaizen_dist.stream.sources.folder import FolderSource


class DomainsSource(FolderSource):
    """`DOMAIN/CLASS/**`."""

    usage = "domains:PATH"
    read = staticmethod(read_domain_folders)
