"""`bench scaling`: efficiencies worked by hand, what is refused, and a run on two ranks."""

import json
import subprocess
import sys

import pytest

from kaizen_dist.bench import scaling
from kaizen_dist.bench.efficiency import PARTS, grouped_parts, scaling_rows, split
from kaizen_dist.bench.scaling_plan import Case, ScalingPlan, check, parse_counts
from kaizen_dist.common.errors import KaizenError, UsageError
from kaizen_dist.config import load

SMALL = ["train.batch_size=16", "replay.batch_size=8", "replay.fraction=0.05"]
SMALL += [
    "ssl.hidden=24",
    "ssl.dim=12",
    "ssl.predictor_hidden=20",
    "distill.hidden=20",
    "model.backbone=tiny_backbone:Tiny",
]


def sample(rate: float, step_ms: float = 100, **parts: float) -> dict:
    """A row of `bench train`."""
    names = ("data", "student", "backward", "communication", "optimizer")
    parts = dict.fromkeys(names, 20.0) | {"momentum": 0.0, "teacher": 0.0} | parts
    row = {"images_per_second": rate, "cpu_ms_per_image": 1.0, "step_ms": step_ms}
    return row | {"parts_ms": parts}


def rows(*rates: list[float], ranks=(1, 2, 4)):
    taken = [[sample(rate) for rate in of_count] for of_count in rates]

    labels = [{"name": f"weak, {n}", "mode": "weak", "nodes": n, "ranks": n} for n in ranks]
    return scaling_rows(labels, taken, [None] * len(ranks))


def plan(*counts: int, ranks: int = 1, unit="rank") -> ScalingPlan:
    return ScalingPlan(counts, unit, ranks, 1, repeats=2, steps=2, stream="s", classes=10)


# ---- by hand -------------------------------------------------------------------------------


def test_efficiency_is_of_every_round_by_itself():
    """The second round is half as fast throughout, which says nothing about scaling."""
    one, two, four = rows([100, 50, 80], [180, 90, 152], [300, 150, 256])
    assert one["efficiency_spread"] == (1, 1)
    assert two["efficiency"] == pytest.approx(0.9)  # 180/200, 90/100, 152/160
    assert two["efficiency_spread"] == pytest.approx((0.9, 0.95))
    assert four["efficiency"] == pytest.approx(0.75)  # 300/400, 150/200, 256/320
    assert four["images_per_second"] == 256
    assert four["images_per_second_spread"] == (150, 300)


def test_a_count_that_failed_has_no_row_and_one_that_failed_later_has_its_rounds():
    two, four = rows([], [100, 120, 110], [190])
    assert (two["ranks"], two["efficiency"]) == (2, 1)
    assert (four["ranks"], four["rounds"]) == (4, 1)
    assert four["efficiency"] == pytest.approx(0.95)


def test_parts_add_up_to_the_step_and_a_save_comes_on_top():
    """Medians of parts: 10, 30, 40, 10, 5, in all 95 of a step of 190 ms: twice of each. A save
    of 3 s in each minute is 5 % of the step more."""
    slow = sample(1, 200, data=60, student=30, backward=40, communication=10, optimizer=5)
    fast = sample(1, 180, data=10, student=50, backward=40, communication=20, optimizer=5)
    usual = sample(1, 190, data=5, student=30, backward=90, communication=0, optimizer=5)
    parts = split([slow, fast, usual], stall_seconds=3)
    assert tuple(parts) == PARTS
    assert parts == pytest.approx(
        dict(zip(PARTS, (20, 60, 80, 20, 10, 9.5), strict=True)), rel=1e-12
    )


def test_a_row_of_bench_train_in_five_parts():
    names = ("data", "student", "momentum", "teacher", "backward", "optimizer", "communication")
    parts = dict(zip((*names, "rest"), (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0), strict=True))
    row = {"images_per_second": 9.0, "cpu_ms_per_image": 3.0, "step_ms": 255.0, "parts_ms": parts}
    assert grouped_parts(row) == {
        "data": 1,
        "forward": 14,
        "backward": 16,
        "communication": 64,
        "other": 160,
    }


# ---- what is measured ----------------------------------------------------------------------


def test_batches_and_lanes_grow_with_weak_scaling_alone(configs):
    config = load(configs / "digits.yaml", ["train.lanes=8"])
    assert Case(4, 4).overrides(config) == [
        "train.batch_size=256",
        "replay.batch_size=128",
        "train.lanes=32",
    ]
    assert Case(4, 4).grown(config) == load(configs / "digits.yaml", Case(4, 4).overrides(config))
    assert Case(4, 1).grown(config) == config


def test_one_node_is_measured_once_for_both_modes():
    assert plan(1, 2).cases == [Case(1, 1), Case(2, 2), Case(2, 1)]
    assert plan(1, 2).name_of(Case(1, 1)) == "weak and strong, 1 rank"
    assert len(plan(2, 4).cases) == 4


def test_counts_are_numbers():
    assert parse_counts("4,1,2,1") == (1, 2, 4)
    for wrong in ("", "1,,2", "0,1", "-1", "two"):
        with pytest.raises(UsageError, match="1,2,4"):
            parse_counts(wrong)


def test_counts_that_do_not_fit_are_refused_with_those_that_do(configs, digits, tmp_path):
    """8 lanes: 3 ranks cannot share them. Weak scaling has 24 then, which they can."""
    config = load(configs / "digits.yaml", SMALL)
    check(plan(1, 2), config, digits, tmp_path)
    with pytest.raises(UsageError, match=r"(?s)strong, 3 ranks: 8 lanes.*fit: 1, 2$"):
        check(plan(1, 3), config, digits, tmp_path)


def test_a_run_is_not_written_over(configs, digits, tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UsageError, match="holds a run"):
        check(plan(1), load(configs / "digits.yaml", SMALL), digits, tmp_path)


def test_rounds_take_turns_and_a_failure_leaves_the_others(configs, tmp_path, capsys):
    """With a stand-in for the ranks, which says what `bench` would and fails on two of strong."""
    config, seen = load(configs / "digits.yaml", SMALL), []

    def start(count, arguments, output, log):
        verb, batch = arguments[1], [a for a in arguments if a.startswith("train.batch_size=")][-1]
        seen.append((verb, count, int(batch.partition("=")[2])))
        if seen[-1] == ("train", 2, 16):
            log.write_text("out of memory")
            return 1
        parts = dict.fromkeys(
            ["data", "student", "momentum", "teacher", "backward", "communication"], 10.0
        )
        row = {"images_per_second": 10.0 * count, "cpu_ms_per_image": 1.0, "step_ms": 60.0}
        row |= {"parts_ms": parts, "stall_seconds": 0.6}
        output.write_text(f"a warning\n{json.dumps({'rows': [row], 'machine': {}})}\n")
        return 0

    result = scaling.measure(plan(1, 2), config, ["c.yaml"], tmp_path, start)
    assert seen[:3] == [("train", 1, 16), ("train", 2, 32), ("train", 2, 16)]
    assert seen[3:] == [
        ("train", 2, 32),
        ("train", 1, 16),
        ("checkpoint", 1, 16),
        ("checkpoint", 2, 32),
    ]
    assert [row["name"] for row in result.rows] == [
        "weak, 1 rank",
        "weak, 2 ranks",
        "strong, 1 rank",
    ]
    assert result.rows[1]["parts"]["checkpoint"] == pytest.approx(0.6)
    log = tmp_path / "logs" / "strong-2-ranks-round-1.log"
    with pytest.raises(KaizenError, match=str(log)):
        result.raise_failures()
    assert f"see {log}" in capsys.readouterr().err
    assert f"strong, 2 ranks, round 1, see {log}" in (tmp_path / "scaling.md").read_text()


def test_results_are_drawn_and_written(configs, tmp_path):
    """Of two rounds, the second with its cases in the opposite order."""
    config, speeds = load(configs / "digits.yaml", SMALL), iter((100, 50, 180, 95, 300, 150))

    def start(count, arguments, output, log):
        rows = [{"stall_seconds": 0.6} if "checkpoint" in arguments else sample(next(speeds))]
        output.write_text(json.dumps({"rows": rows, "machine": {}}))
        return 0

    nodes = ScalingPlan((1, 2), "node", 2, 1, repeats=2, steps=2, stream="s", classes=10)
    result = scaling.measure(nodes, config, ["c.yaml"], tmp_path, start)
    said = (tmp_path / "scaling.md").read_text()
    assert "| weak, 2 nodes | 4 | 175.0 (50.0 to 300.0) |" in said
    assert "batch 16 + 8 of one node" in said
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "scaling.json").read_text())["rows"][2]["ranks"] == 2
    assert result.rows[1]["nodes"] == 2


# ---- for real ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_and_two_ranks_of_this_machine(digits, configs, tmp_path):
    """What the parts, the speeds and the files are to each other."""
    command = [sys.executable, "-m", "kaizen_dist", "bench", "scaling"]
    command += [str(configs / "digits.yaml"), *SMALL, "--stream", str(digits.root)]
    command += ["--out", str(tmp_path), "--procs", "1,2", "--repeats", "1", "--steps", "2"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "scaling.json").read_text())
    assert found["failures"] == []
    names = [(row["name"], row["nodes"], row["ranks"]) for row in found["rows"]]
    assert names == [
        ("weak, 1 rank", 1, 1),
        ("weak, 2 ranks", 1, 2),
        ("strong, 1 rank", 1, 1),
        ("strong, 2 ranks", 1, 2),
    ]
    for row in found["rows"]:
        parts, batch = row["parts"], 16 * (row["ranks"] if row["mode"] == "weak" else 1)
        assert sum(parts.values()) - parts["checkpoint"] == pytest.approx(row["step_ms"])
        assert row["images_per_second"] == pytest.approx(1000 * batch / row["step_ms"])
        assert (parts["communication"] > 0) == (row["ranks"] > 1)
        assert parts["checkpoint"] > 0
    first, second = (row["images_per_second"] for row in found["rows"][:2])
    assert found["rows"][1]["efficiency"] == pytest.approx(second / first / 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "logs",
        "scaling.json",
        "scaling.md",
        "scaling.png",
    ]
