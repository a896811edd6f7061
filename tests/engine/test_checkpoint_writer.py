"""The thread that saves works for its rank's device, and takes one core."""

import threading

import torch

from kaizen_dist.config.schema import CheckpointConfig
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.checkpoint.writer import CheckpointWriter


def test_it_works_for_its_ranks_device_with_one_core(tmp_path, monkeypatch):
    devices, cores = [], []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda d: devices.append((threading.current_thread().name, d))
    )

    class Snapshot:
        def finite(self) -> bool:
            cores.append(torch.get_num_threads())
            return True

        def write(self, folder) -> None:
            cores.append(torch.get_num_threads())

    device = torch.device("cuda", 5)
    torch.set_num_threads(2)
    try:
        with CheckpointWriter(tmp_path, CheckpointConfig(), RankContext(device=device)) as saver:
            saver.save("t00-s000001", Snapshot, {})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert devices == [("checkpoint", device)]
    assert cores == [1, 1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["t00-s000001"]
