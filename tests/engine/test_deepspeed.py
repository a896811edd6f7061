"""DeepSpeed's ZeRO: LARS only where it is right, its files, and the configuration made for it."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from spread import ADAMW, LARS, against_ddp, begin, build, on_ranks, state_of, train
from test_worlds import config_of

from kaizen_dist.common.errors import UsageError, WriteError
from kaizen_dist.distributed.context import RankContext
from kaizen_dist.engine.deepspeed.settings import deepspeed_config
from kaizen_dist.stream.manifest import Stream

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra `deepspeed`"),
]


def zero(stage: int, **more):
    return {"engine": "deepspeed", "zero_stage": stage, **more}


# ---- what is saved ------------------------------------------------------------------------


def interrupted(context: RankContext, root: str, folder: str):
    """For each stage: a run that is saved and goes on, and one that goes on from what it saved."""
    stream = Stream.open(root)
    found = {}
    for stage in range(4):
        config = config_of("mocov2plus", optim=ADAMW, parallel=zero(stage))
        kept = Path(folder) / str(stage)
        for name in ("within", "between"):
            (kept / name).mkdir(parents=True, exist_ok=True)
        context.barrier()
        engine = build(config, stream, context)
        begin(engine, stream, 0)
        train(engine, stream, 0, range(1))
        begin(engine, stream, 1)
        train(engine, stream, 1, range(2))
        snapshot = engine.snapshot(within_task=True)
        between = engine.snapshot(within_task=False)
        expected = train(engine, stream, 1, range(2, 4)), state_of(engine)
        # Written after two more steps: it must be a copy.
        snapshot.write(kept / "within")
        between.write(kept / "between")
        context.barrier()
        again = build(config, stream, context)
        begin(again, stream, 0)
        begin(again, stream, 1)
        again.restore(kept / "within", within_task=True)
        losses = train(again, stream, 1, range(2, 4))
        state = state_of(again)
        same = state.keys() == expected[1].keys() and all(
            np.array_equal(state[name], tensor) for name, tensor in expected[1].items()
        )
        found[stage] = losses == expected[0], same
    lars, _ = against_ddp(context, root, "byol", {"optim": LARS}, {"zero0": zero(0)}, (1, 3))
    return found, lars["zero0"]


@pytest.fixture(scope="module")
def saved(ranks, digits, shared_folder):
    """(what each rank found, the folder with STAGE/within and STAGE/between) by two ranks."""
    return ranks(on_ranks, 2, interrupted, str(digits.root), str(shared_folder)), shared_folder


def test_a_run_goes_on_bit_for_bit_from_what_it_saved(saved):
    for found, _ in saved[0]:
        assert found == dict.fromkeys(range(4), (True, True))


def test_lars_on_stage_0_is_that_of_ddp(saved):
    for _, apart in saved[0]:
        assert max(apart.values()) < 1e-6, apart


def test_files_hold_plain_data_only(saved):
    files = sorted((saved[1] / "3" / "within").iterdir())
    assert len([f for f in files if f.name.endswith("_optim_states.pt")]) == 2
    assert len(files) == 4
    for file in files:
        assert torch.load(file, weights_only=True)


def onwards(context: RankContext, root: str, folder: str):
    """What one rank makes of what two have saved."""
    stream = Stream.open(root)
    between, refusals = {}, {}
    for stage in range(4):
        kept = Path(folder) / str(stage)
        own = zero(stage) if stage == 1 else {"engine": "ddp" if stage % 2 else "fsdp"}
        engine = build(config_of("mocov2plus", optim=ADAMW, parallel=own), stream, context)
        engine.restore(kept / "between", within_task=False)
        between[stage] = state_of(engine)
    engine = build(config_of("mocov2plus", optim=ADAMW, parallel=zero(3)), stream, context)
    begin(engine, stream, 1)
    for name in ("within", "between"):
        with pytest.raises(UsageError) as refused:
            engine.restore(Path(folder) / "3" / name, within_task=True)
        refusals[name] = str(refused.value)
    with pytest.raises(WriteError) as refused:
        engine.snapshot(within_task=True).write(Path(folder) / "missing")
    refusals["missing"] = str(refused.value)
    return between, refusals


def test_between_tasks_any_engine_goes_on_and_within_one_as_many_ranks_only(ranks, saved, digits):
    ((between, refusals),) = ranks(on_ranks, 1, onwards, str(digits.root), str(saved[1]))
    first = between[0]
    assert {name.split(".")[0] for name in first} >= {"backbone", "momentum", "method"}
    for stage in (1, 2, 3):
        for name, tensor in between[stage].items():
            assert np.abs(tensor - first[name]).max(initial=0) < 1e-6, (stage, name)
    assert "by 2 ranks" in refusals["within"]
    assert "start 2 ranks" in refusals["within"]
    assert "another engine than deepspeed" in refusals["between"]
    assert re.search("cannot write .*missing", refusals["missing"])


# ---- configuration ------------------------------------------------------------------------


def settings(tmp_path, theirs=None, **sections):
    parallel = zero(2)
    if theirs is not None:
        path = tmp_path / "ds.json"
        path.write_text(theirs if isinstance(theirs, str) else json.dumps(theirs))
        parallel["deepspeed_config"] = str(path)
    config = config_of("byol", **{"optim": ADAMW, "parallel": parallel} | sections)
    return deepspeed_config(config, 2)


def test_configuration_is_made_from_ours(tmp_path):
    made = settings(
        tmp_path, optim=ADAMW | {"clip_norm": 0.3}, train={"batch_size": 16, "accumulate": 4}
    )
    assert made["train_micro_batch_size_per_gpu"] == 2
    assert made["gradient_accumulation_steps"] == 4
    assert made["gradient_clipping"] == 0.3
    assert made["zero_optimization"]["stage"] == 2


def test_a_file_may_set_speed_and_repeat_what_is_so(tmp_path):
    theirs = {
        "gradient_clipping": 0.0,
        "wall_clock_breakdown": True,
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
    }
    made = settings(tmp_path, theirs)
    assert made["wall_clock_breakdown"]
    assert made["zero_optimization"]["reduce_bucket_size"] == 1000
    assert made["zero_optimization"]["stage"] == 2


def test_what_a_file_must_not_say_is_refused_by_name(tmp_path):
    theirs = {
        "gradient_clipping": 1.0,
        "optimizer": {"type": "Adam"},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}},
    }
    with pytest.raises(UsageError) as refused:
        settings(tmp_path, theirs)
    message = str(refused.value)
    assert "parallel.deepspeed_config" in message
    assert "gradient_clipping=1.0 contradicts the run, which has 0.0" in message
    assert "zero_optimization.stage=3 contradicts the run, which has 2" in message
    assert "optimizer is not one of speed" in message
    assert "zero_optimization.offload_param is not one of speed" in message


@pytest.mark.parametrize("theirs", ["{", "[]", '{"zero_optimization": 2}'])
def test_a_file_that_is_none_is_refused(tmp_path, theirs):
    with pytest.raises(UsageError, match=r"parallel\.deepspeed_config: .*ds\.json is not"):
        settings(tmp_path, theirs)


def test_a_missing_file_is_refused(tmp_path):
    parallel = zero(1, deepspeed_config=str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match=r"none\.json cannot be read"):
        deepspeed_config(config_of("byol", optim=ADAMW, parallel=parallel), 1)
