"""Devices: what driver and torch say of GPUs, cores and who else computes."""

import time

import pytest
import torch

from kaizen_dist.doctor import devices
from kaizen_dist.doctor.devices import DriverGpu, TorchGpu

GIB = 2**30
H100 = TorchGpu("NVIDIA H100", 80 * GIB, (9, 0))
V100 = TorchGpu("Tesla V100", 16 * GIB, (7, 0))
IDLE, BUSY = DriverGpu("580.10", 4), DriverGpu("580.10", 9000)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees GPUs here")
def test_a_driver_that_hangs_is_said(program, monkeypatch, only):
    program("nvidia-smi", "exec sleep 60")
    monkeypatch.setattr(devices, "_SMI_SECONDS", 0.3)
    begun = time.monotonic()
    found = only(devices.devices(1), "GPUs")
    assert time.monotonic() - begun < 30
    assert found.state == "fail"
    assert "Xid" in found.cure


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees GPUs here")
@pytest.mark.parametrize(
    ("script", "state", "value"),
    [
        ("echo '580.10, 4'; echo '580.10, 0'", "fail", "2 by the driver, none by torch"),
        ("echo 'No devices were found'; exit 6", "ok", "none"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", "warn", "NVIDIA-SMI has failed"),
        ("echo 'something else'", "warn", "fails"),
    ],
)
def test_what_the_driver_says(program, monkeypatch, only, script, state, value):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program("nvidia-smi", script)
    found = only(devices.devices(1), "GPUs")
    assert found.state == state
    assert value in found.value


def test_gpus_are_described():
    found = devices.gpus([IDLE, IDLE], [H100, H100], "13.0", None)
    assert (found.state, found.value) == (
        "ok",
        "2 x NVIDIA H100, 80 GiB, capability 9.0, bf16",
    )
    assert "no bf16" in devices.gpus([IDLE], [V100], "12.6", None).value


def test_what_is_wrong_with_gpus():
    assert "nvidia-smi" in devices.gpus([IDLE, BUSY], [H100, H100], "13.0", None).cure
    assert devices.gpus([IDLE, IDLE], [H100, V100], "13.0", None).state == "warn"
    assert "built for CPUs" in devices.gpus([IDLE], [], None, None).cure
    assert "580.10" in devices.gpus([IDLE], [], "13.0", None).cure
    hidden = devices.gpus([IDLE], [], "13.0", "")
    assert hidden.state == "warn"
    assert "CUDA_VISIBLE_DEVICES" in hidden.cure


def test_cores():
    assert devices.cores(16, 16, None, 4).state == "ok"
    assert "4 for each of 4 ranks" in devices.cores(16, 16, None, 4).value
    assert "--cpus-per-task" in devices.cores(16, 1, None, 1).cure
    assert devices.cores(1, 1, None, 1).state == "ok"
    assert "train.threads=2" in devices.cores(16, 16, 4.0, 2).cure
    assert devices.cores(16, 4, None, 8).state == "warn"


def test_load():
    assert devices.load(3.0, 2).state == "ok"
    assert devices.load(3.1, 2).state == "warn"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_real_gpus(only):
    found = list(devices.devices(1))
    assert len(only(found, "GPUs").facts["gpus"]) == torch.cuda.device_count()
    assert torch.cuda.get_device_name(0) in only(found, "GPUs").value
    assert f"runtime {torch.version.cuda}" in only(found, "CUDA").value
