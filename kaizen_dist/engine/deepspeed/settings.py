"""DeepSpeed's configuration, derived from the run's and merged with the user's.

The run's keys alone decide what is computed. The user's DeepSpeed file may set speed and memory:
any other key in it is refused by name, and so is every key that contradicts the run's.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config import Config

_SPEED = {
    "comms_logger",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.allgather_partitions",
    "zero_optimization.contiguous_gradients",
    "zero_optimization.overlap_comm",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.reduce_scatter",
    "zero_optimization.round_robin_gradients",
    "zero_optimization.stage3_max_live_parameters",
    "zero_optimization.stage3_max_reuse_distance",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.sub_group_size",
    "zero_optimization.use_multi_rank_bucket_allreduce",
}
"""Keys that the user's file may set: they change results in rounding only."""


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`.

    Raises:
        UsageError: naming the key of `parallel.deepspeed_config` that is refused.
    """
    ours = _ours(config, world_size)
    if config.parallel.deepspeed_config is None:
        return ours
    theirs = _read(Path(config.parallel.deepspeed_config))
    _check(theirs, ours, f"parallel.deepspeed_config: {config.parallel.deepspeed_config}")
    zero = theirs.get("zero_optimization", {}) | ours["zero_optimization"]
    return theirs | ours | {"zero_optimization": zero}


def _ours(config: Config, world_size: int) -> dict[str, Any]:
    parts = config.train.accumulate
    return {
        "train_micro_batch_size_per_gpu": config.train.batch_size // (world_size * parts),
        "gradient_accumulation_steps": parts,
        "gradient_clipping": config.optim.clip_norm or 0.0,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            # The momentum network is updated shard by shard: no parameter may stay unsharded.
            "stage3_param_persistence_threshold": 0,
            # Stage 3's own linear layer rounds differently, and replaces torch's everywhere.
            "memory_efficient_linear": False,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _read(path: Path) -> dict[str, Any]:
    name = f"parallel.deepspeed_config: {path}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{name} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{name} is not JSON ({error})") from None
    if not isinstance(values, dict) or not isinstance(values.get("zero_optimization", {}), dict):
        raise UsageError(f"{name} is not a configuration of DeepSpeed's: an object is expected")
    return values


def _check(theirs: Mapping[str, Any], ours: Mapping[str, Any], name: str) -> None:
    flat, own = _flat(theirs), _flat(ours)
    wrong = []
    for key, value in flat.items():
        if key in own and own[key] != value:
            wrong.append(f"{key}={value!r} contradicts the run, which has {own[key]!r}")
        elif key not in own and key not in _SPEED:
            wrong.append(f"{key} is not one of speed or memory")
    if wrong:
        raise UsageError(
            f"{name}: {'; '.join(wrong)}. Leave these out: what is computed is decided by "
            f"train.*, optim.* and parallel.*. It may set {', '.join(sorted(_SPEED))}"
        )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    zero = values.get("zero_optimization", {})
    rest = {key: value for key, value in values.items() if key != "zero_optimization"}
    return rest | {f"zero_optimization.{key}": value for key, value in zero.items()}
