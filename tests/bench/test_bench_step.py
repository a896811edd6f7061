"""The bench of a step: its contenders compute the same, its parts add up. Speed is not tested."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg
from emulated_gpu import CUDA, EmulatedGpu
from torch.nn.modules._functions import SyncBatchNorm
from typer.testing import CliRunner

from kaizen_dist.bench import machine
from kaizen_dist.bench.contender import Contender, LocalContender, RemoteContender
from kaizen_dist.bench.reference_step import ReferenceStep
from kaizen_dist.bench.step import bench_step
from kaizen_dist.bench.step_timer import (
    MOMENTUM,
    OPTIMIZER,
    PARTS,
    REST,
    STUDENT,
    TEACHER,
    StepTimer,
    watched,
)
from kaizen_dist.cli import app
from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config, load, validate
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.torch_engine import DDPEngine
from kaizen_dist.learner.flops import step_flops
from kaizen_dist.learner.learner import Learner
from kaizen_dist.views.loader import Batch

CPU = torch.device("cpu")
SMALL = {
    "byol": {"hidden": 24, "dim": 12, "predictor_hidden": 20},
    "simclr": {"hidden": 24, "dim": 12},
    "mocov2plus": {"hidden": 24, "dim": 12, "queue": 50},
    "vicreg": {"hidden": 24, "dim": 12},
}


def config_of(method: str = "byol", **sections) -> Config:
    values = {
        "method": method,
        "ssl": SMALL[method],
        "model": {"backbone": "tiny_backbone:Tiny"},
        "classifier": {"hidden": 16},
        "distill": {"hidden": 20},
        "train": {"epochs": 10, "batch_size": 8, "threads": 1},
        "replay": {"fraction": 0.1, "batch_size": 4},
        "optim": {"lr": 0.2, "warmup_epochs": 0, "weight_decay": 0.01},
        "views": {"size": 8},
    }
    return validate(values | sections, "the test")


def local(config: Config, eager: bool = False) -> LocalContender:
    return LocalContender(Contender("ours", config, eager), 5, RankContext())


def with_settings(config: Config, settings: dict) -> Config:
    values = config.dump()
    for dotted, value in settings.items():
        section, _, key = dotted.rpartition(".")
        (values[section] if section else values)[key] = value
    return validate(values, "the test")


CASES = [("byol", {"optim.name": name}) for name in ("lars", "sgd", "adamw")]
CASES += [(method, {}) for method in ("simclr", "mocov2plus", "vicreg")]
CASES += [
    ("byol", {key: value})
    for key, value in (
        ("ssl_weight", 0.5),
        ("classifier.logit_adjustment", 1.0),
        ("classifier.stop_gradient", False),
        ("classifier.enabled", False),
        ("classifier.weight", 0.3),
        ("distill.features", False),
        ("distill.features_weight", 0.7),
        ("distill.fraction", 0.5),
        ("supervise.weight", 0.5),
        ("teacher.batch_stats", True),
        ("optim.clip_norm", 0.1),
        ("train.accumulate", 2),
    )
]


@pytest.mark.parametrize(("method", "settings"), CASES)
def test_the_step_is_the_plain_one(method, settings):
    """In float64, where rounding hides no difference: every term, and the whole state."""
    given = {"optim.lr": 0.02, "train.lanes": 4} | settings
    if settings.get("classifier.enabled") is False:
        given["distill.classifier"] = False
    config = with_settings(config_of(method), given)
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, 12, 3, 8, 8, generator=generator).double()
    labels = torch.tensor([0, -1, 2, 3, 4, 0, 1, -1, 3, 2, 1, 0])

    def make() -> Learner:
        return Learner(config, 5).double()

    plain = ReferenceStep(config, make(), StepTimer(CPU))
    engine = DDPEngine(config, make, RankContext())
    engine.begin_task(1, 10, 10)
    for number in range(3):
        ours = engine.step(Batch(views, labels, np.arange(12), 8), number)
        theirs = plain.step(views, labels, number, 10)
        torch.testing.assert_close(ours.stack(), theirs.stack(), rtol=1e-9, atol=1e-9)
    expected = plain.learner.state_dict()
    for name, tensor in engine.learner.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9, msg=name)


SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
WIDTHS = {"hidden": 24, "dim": 12, "predictor_hidden": 20, "queue": 50}


def small(path: Path) -> Config:
    """A shipped configuration with all that it computes, on images and networks of no size."""
    config = load(path)
    vit = config.model.backbone.startswith("vit")
    values = {
        f"ssl.{key}": min(WIDTHS[key], config.ssl[key]) for key in WIDTHS if key in config.ssl
    }
    values |= {"classifier.hidden": 16, "distill.hidden": 20, "train.threads": 1}
    values |= {"train.batch_size": 8, "replay.batch_size": 4, "views.size": 16 if vit else 8}
    return with_settings(config, values | ({} if vit else {"model.backbone": "tiny_backbone:Tiny"}))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_has_the_losses_of_the_plain_step(path, kind):
    """And their gradients, which `stop_gradient` alone decides; twice, for what is counted."""
    config, close = small(path), 1e-9 if kind == torch.float64 else 1e-5
    views = torch.randn(
        2, 12, 3, *[config.views.size] * 2, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.tensor([0, -1, 2, 3, 4, 0, 1, -1, 3, 2, 1, 0])
    learner = Learner(config, 5).to(kind)
    learner.begin_task(first=False)
    learner.train()
    plain = ReferenceStep(config, Learner(config, 5).to(kind), StepTimer(CPU))
    plain.learner.train()
    for _ in range(2):
        ours, theirs = learner(views.to(kind), labels), plain.losses(views.to(kind), labels)
        torch.testing.assert_close(ours.stack(), theirs.stack(), rtol=close, atol=close)
        ours.total.backward()
        theirs.total.backward()
    gradients = {n: p.grad for n, p in plain.learner.named_parameters() if p.grad is not None}
    scale = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            off = (parameter.grad - gradients.pop(name)).abs().max() / scale
            assert off < 10 * close, name
    assert not gradients


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_losses_are_the_plain_ones(precision):
    """To the rounding of either precision, which temperatures of 0.1 enlarge tenfold."""
    close = 1e-5 if precision == "fp32" else 5e-3
    for method in ("byol", "simclr", "mocov2plus", "vicreg"):
        config = config_of(method, parallel={"precision": precision})
        ours, theirs = (local(config, eager).turn(1).losses[0] for eager in (False, True))
        assert ours == pytest.approx(theirs, rel=close, abs=close), method


@pytest.mark.parametrize(("flops", "largest"), [(1e8, 256), (3e9, 1024), (1e15, 2048)])
def test_the_product_that_is_timed_is_as_large_as_a_machine_can_do(monkeypatch, flops, largest):
    """A CPU that has bf16 in software only waited minutes for matrices of 1,536 rows."""
    sides = []

    def seconds(device, precision, side):
        sides.append(side)
        return 2 * side**3 / flops, 4 * side**3 / flops

    monkeypatch.setattr(machine, "product_seconds", seconds)
    answer = machine.peak_flops(torch.device("cpu"), "bf16")
    assert answer == pytest.approx((flops, flops / 2))
    assert (sides[0], sides[-1]) == (128, largest)


def test_parts_add_up_to_the_step_and_hooks_go_when_they_are_done():
    runner = local(config_of())
    begun = time.perf_counter()
    turn = runner.turn(2)
    seconds = [sum(part.seconds for part in parts.values()) for parts in turn.parts]
    assert 0 < sum(seconds) + 2 * turn.free.seconds < time.perf_counter() - begun
    assert len(seconds) == 2
    for parts in turn.parts:
        assert parts.keys() == set(PARTS)
        for name in (STUDENT, MOMENTUM, TEACHER, OPTIMIZER):
            assert parts[name].seconds > 0, name
        assert parts["communication"].seconds == 0
    learner = runner.learner
    assert learner._forward_hooks
    runner.close()
    assert not learner._forward_hooks
    assert not learner.teacher._forward_pre_hooks


def test_a_turn_measures_with_and_without_a_pause(monkeypatch):
    """A GPU takes 5 s for what its host queues in 1: a step of 6 that is waited for, and 5 of the
    steps without a pause. Reading the losses and meeting the others is no part of either."""
    runner = local(config_of())
    gpu = EmulatedGpu(monkeypatch)
    runner.context, runner.timer = RankContext(device=CUDA), StepTimer(CUDA)

    def take(number):
        gpu.host(1)
        gpu.queue(5)

    runner.take = take
    monkeypatch.setattr(RankContext, "barrier", lambda _: gpu.host(1000))
    monkeypatch.setattr("kaizen_dist.bench.contender.set_determinism", lambda *_: None)
    monkeypatch.setattr("kaizen_dist.bench.steps.report", gpu.report)
    monkeypatch.setattr("kaizen_dist.bench.contender.peak_flops", lambda *_: (1.0, 1.0))
    monkeypatch.setattr("kaizen_dist.bench.contender.memory_bytes", lambda _: 0)
    turn = runner.turn(4)
    steps = [sum(part.seconds for part in parts.values()) for parts in turn.parts]
    assert steps == [6] * 4
    assert turn.free == ((1 + 4 * 5) / 4,) * 2
    assert len(turn.losses) == runner.number == 8
    runner.close()


def test_contenders_of_one_process_each_compute_as_they_were_told(monkeypatch):
    """Under torchrun they share it; the peak is that of the same arithmetic as the steps."""
    told, seen = [], []
    monkeypatch.setattr(
        "kaizen_dist.bench.contender.set_determinism", lambda p, _: told.append(p.tf32)
    )
    monkeypatch.setattr("kaizen_dist.engine.base.set_determinism", lambda *_: None)

    def peak(*_):
        seen.append(told[-1])
        return 1.0, 1.0

    monkeypatch.setattr("kaizen_dist.bench.contender.peak_flops", peak)
    runners = []
    for tf32 in (True, False):
        config = config_of(parallel={"tf32": tf32})
        runners += [local(config, eager) for eager in (True, False)]
    for one in (*runners, *runners[::-1]):
        one.turn(1)
    assert seen == [True, True, False, False, False, False, True, True]
    for one in runners:
        one.close()


def test_a_part_within_another_is_taken_from_it(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr("kaizen_dist.bench.step_timer.time.perf_counter", lambda: float(next(now)))
    clock = StepTimer(CPU)
    assert clock.mark(STUDENT) == STUDENT  # between steps nothing is timed
    clock.begin()
    clock.mark(STUDENT)
    with clock.part("data"):
        pass
    clock.mark(OPTIMIZER)
    spent = {name: part.seconds for name, part in clock.end().items() if part.seconds}
    assert spent == {REST: 1, STUDENT: 2, "data": 1, OPTIMIZER: 1}


def test_operations_of_a_step_counted_by_hand():
    """A vision transformer of patches of 4 at 8 px: all of its work is matrix products."""
    model = {"backbone": "vit_ti_4"}
    config = config_of("simclr", model=model, distill={"features": False, "classifier": False})
    config = config.model_copy(
        update={"classifier": config.classifier.model_copy(update={"enabled": False})}
    )
    flops = step_flops(config, 5)
    tokens, width, views = 5, 192, 2 * 12
    block = 2 * tokens * width * (3 * width + width + 2 * 768) + 2 * 2 * tokens**2 * width
    patches = 2 * 4 * width * 3 * 16
    head = 2 * (192 * 24 + 24 * 12)
    loss = 2 * views * views * 12
    assert flops.student == views * (12 * block + patches + head) + loss
    assert (flops.momentum, flops.teacher, flops.teacher_share) == (0, 0, 0)


def test_networks_that_only_look_cost_what_the_student_costs():
    flops = step_flops(config_of(), 5)
    assert flops.momentum == pytest.approx(flops.student, rel=0.02)
    assert flops.teacher == pytest.approx(flops.student, rel=0.02)
    assert flops.backward == pytest.approx(2 * flops.student, rel=0.1)
    assert step_flops(config_of(), 5, first=True).teacher == 0


def test_rows_are_plain_data_and_losses_stand_side_by_side(tmp_path, capsys):
    config = config_of()
    half = config.model_copy(
        update={"parallel": config.parallel.model_copy(update={"precision": "bf16"})}
    )
    trace = tmp_path / "trace.json"
    result = bench_step(
        config, 5, RankContext(), others=[Contender("half", half)], repeats=1, profile=trace
    )
    plain = json.loads(json.dumps(result.to_json()))
    assert [row["name"] for row in plain["rows"]] == ["eager", "as configured", "half"]
    for row in plain["rows"]:
        low, high = row["images_per_second_spread"]
        assert low <= row["images_per_second"] <= high
        assert row["cpu_ms_per_image"] > 0
        assert row["images_per_second"] == pytest.approx(8000 / row["step_ms"])
        assert row["synchronised_ms"] > 0
        assert row["precision"] == ("bf16" if row["name"] == "half" else "fp32")
        assert row["tf32"] is True
        assert len(row["losses"]) == 4
        assert row["memory_bytes"] > 1e8
        assert row["loss_difference"] < 0.05
    assert plain["settings"]["replay"] == 4
    assert "turn 1 of 1" in capsys.readouterr().err
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {STUDENT, MOMENTUM, TEACHER, OPTIMIZER} <= names
    assert len(result.sheets) == 3


def test_an_error_of_a_contender_reaches_the_user():
    config = config_of(model={"backbone": "resnet81"})
    runner = RemoteContender(Contender("ours", config), 5, RankContext())
    with pytest.raises(UsageError, match="resnet81"):
        runner.turn(1)
    runner.close()


def test_the_verb_answers_with_its_example():
    done = CliRunner().invoke(app, ["bench", "step", "--help"])
    assert "kaizen-dist bench step" in done.stdout


def gathered_statistics(device: torch.device, group: dist.ProcessGroup) -> dict[str, float]:
    """Seconds by part of the statistics that torch's SyncBatchNorm gathers over a group."""
    shape = (4, 3, 2, 2)
    clock = StepTimer(device)
    engine = DDPEngine(config_of(), lambda: Learner(config_of(), 5), RankContext(device=device))
    engine.begin_task(1, 10, 10)
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    with watched(engine, clock):
        clock.begin()
        SyncBatchNorm.apply(images, None, None, None, None, 1e-5, 0.1, group, 1)
        spent = clock.end()
    return {name: part.seconds for name, part in spent.items()}


@pytest.fixture
def group_of_one(tmp_path):
    """`group_of_one(backend)`: a process group of this process alone."""
    store = dist.FileStore(str(tmp_path / "store"), 1)

    def make(backend: str) -> dist.ProcessGroup:
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        return dist.group.WORLD

    yield make
    dist.destroy_process_group()


def test_statistics_of_the_global_batch_are_communication(group_of_one, monkeypatch):
    """Whichever collective this torch's SyncBatchNorm calls: its kernels, which are a GPU's, stand
    aside, and torch's fake backend takes NCCL's place, which gloo's would not take."""
    group, three = group_of_one("fake"), torch.ones(3)
    monkeypatch.setattr(torch, "batch_norm_stats", lambda *_: (three, three))
    monkeypatch.setattr(torch, "batch_norm_gather_stats_with_counts", lambda *_: (three, three))
    monkeypatch.setattr(torch, "batch_norm_elemt", lambda images, *_: images)
    assert gathered_statistics(CPU, group)["communication"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_statistics_are_communication_on_a_gpu(group_of_one):
    device = torch.device("cuda", 0)
    assert gathered_statistics(device, group_of_one("nccl"))["communication"] > 0
