"""Storage under a stream: what is read is what is there. The whole of it runs in test_doctor."""

import pytest

from kaizen_dist.common.errors import DataError
from kaizen_dist.doctor import storage


def test_every_byte_is_read_end_to_end(digits):
    shards = digits.split(0, "train").shards
    read, speed = storage.sequential(shards)
    assert read == sum(shard.stat().st_size for shard in shards)
    assert speed > 0


def test_storage_slower_than_the_loader_is_said():
    assert storage.offset_finding(500, 1e6, 400).state == "ok"
    slow = storage.offset_finding(300, 1e6, 400)
    assert slow.state == "warn"
    assert "stream.cache_dir" in slow.cure
    assert storage.sequential_finding(10**8, 19e6).state == "warn"
    assert storage.sequential_finding(10**8, 21e6).state == "ok"
    assert storage.sequential_finding(10**6, 19e6).state == "ok"


def test_what_is_no_folder(tmp_path, only):
    assert only(storage.storage("s3://bucket/stream"), "stream").state == "warn"
    with pytest.raises(DataError, match="no stream"):
        list(storage.storage(str(tmp_path / "none")))
