"""What is written of attempts, and what follows from it."""

import pytest

from kaizen_dist.common.errors import DataError
from kaizen_dist.launch.attempts import (
    AttemptLog,
    Began,
    Ended,
    Stopped,
    Submitted,
    bad_nodes,
    stop_reason,
)


def began(job: str, restart: int = 0, position=None) -> Began:
    return Began(job=job, time=1.0, restart=restart, nodes=["a", "b"], position=position)


def ended(job: str, code: int, restart: int = 0, position=None, lost=()) -> Ended:
    return Ended(
        job=job,
        time=2.0,
        restart=restart,
        code=code,
        reason="",
        position=position,
        bad_nodes=list(lost),
    )


def submitted(job: str, guard: str | None = None) -> Submitted:
    return Submitted(
        job=job, time=0.0, nodes=2, ranks_per_node=1, task=None, exclude=[], guard=guard
    )


# ---- the file -----------------------------------------------------------------------------


def test_rows_come_back_as_they_were_written(tmp_path):
    log = AttemptLog(tmp_path)
    assert log.rows() == []
    rows = [submitted("7", "8"), began("7", position=(1, 40)), ended("7", 75, lost=["b"])]
    rows += [Stopped(job="8", time=3.0, reason="why not")]
    for row in rows:
        log.append(row)
    assert log.rows() == rows
    assert (rows[0].job, rows[0].guard) == ("7", "8")


def test_a_last_row_cut_short_by_a_kill_is_none(tmp_path):
    log = AttemptLog(tmp_path)
    log.append(began("7"))
    with log.path.open("a") as file:
        file.write('{"what": "ended", "job": "7", "ti')
    assert log.rows() == [began("7")]


def test_damage_further_up_is_named_with_its_line(tmp_path):
    log = AttemptLog(tmp_path)
    log.path.parent.mkdir()
    log.path.write_text('{"what": "danced"}\n')
    log.append(began("7"))
    with pytest.raises(DataError, match=r"attempts\.jsonl, line 1"):
        log.rows()


# ---- what follows -------------------------------------------------------------------------


@pytest.mark.parametrize("code", [2, 3, 4])
def test_what_the_user_has_to_mend_is_not_tried_again(code):
    rows = [began("7"), ended("7", code)]
    assert f"code {code}" in (stop_reason(rows, None, retries=5) or "")


def test_a_lost_rank_is_tried_again():
    rows = [began("7"), ended("7", 137, position=(0, 4), lost=["b"])]
    assert stop_reason(rows, (0, 4), retries=5) is None
    assert bad_nodes(rows) == ["b"]


def test_two_attempts_without_progress_are_enough():
    rows = [began("7", 0, (0, 4)), ended("7", 75, 0, (0, 4)), began("7", 1, (0, 4))]
    assert "no progress" in (stop_reason(rows, (0, 4), retries=5, current="7") or "")
    # Neither one that stands still after one that went on, nor two that both went on.
    assert stop_reason(rows[2:], (0, 4), retries=5, current="7") is None
    assert stop_reason(rows, (0, 6), retries=5, current="7") is None


def test_two_attempts_that_never_came_to_a_checkpoint():
    rows = [began("7"), ended("7", 1), began("9"), ended("9", 1)]
    assert "before its first checkpoint" in (stop_reason(rows, None, retries=5) or "")


def test_only_failures_count_as_retries():
    rows = []
    for restart in range(20):  # preempted, and always further
        rows += [began("7", restart, (0, restart)), ended("7", 75, restart, (0, restart + 1))]
    assert stop_reason(rows, (0, 20), retries=0, current="7") is None
    rows += [began("7", 20, (0, 20)), ended("7", 137, 20, (0, 22))]
    assert "1 attempts failed" in (stop_reason(rows, (0, 22), retries=0) or "")
    assert stop_reason(rows, (0, 22), retries=1) is None


def test_what_slurm_puts_back_itself_has_not_failed():
    """No row of its end: its batch shell was ended as well."""
    rows = [began("7", 0, (0, 0)), began("7", 1, (0, 4)), began("7", 2, (0, 8))]
    assert stop_reason(rows, (0, 12), retries=0, current="7") is None
    # Asked by a guard, the last one was killed and will not come back.
    assert "1 attempts failed" in (stop_reason(rows, (0, 12), retries=0) or "")


def test_who_submits_a_stopped_run_again_means_it():
    rows = [began("7"), ended("7", 3), Stopped(job="8", time=3.0, reason="bad data")]
    assert stop_reason(rows, None, retries=5) is None
