"""Where a run happens: processes and their peers, engines, optimizers, checkpoints."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kaizen_dist.engine.base import Engine


def engine_class(name: str) -> "type[Engine]":
    """The engine that `parallel.engine` names. Each is loaded only where it is used."""
    if name == "ddp":
        from kaizen_dist.engine.ddp import DDPEngine

        return DDPEngine
    if name == "fsdp":
        from kaizen_dist.engine.fsdp import FSDPEngine

        return FSDPEngine
    if name == "deepspeed":
        from kaizen_dist.engine.deepspeed.engine import ZeROEngine

        return ZeROEngine
    raise ValueError(name)
