"""Memory kept between steps: the system is asked for it once."""

import resource
import subprocess
import sys

import pytest

from kaizen_dist.engine.memory import keep_freed_memory

CODE = """
import resource, sys, torch
from kaizen_dist.engine.memory import keep_freed_memory, return_freed_memory
assert {"keep": keep_freed_memory, "return": return_freed_memory}[sys.argv[1]]()
def step():
    return [torch.ones(10_000_000) for _ in range(3)]  # 40 MB each
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
def test_a_second_step_finds_its_pages_where_the_first_left_them():
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", CODE, how], stdout=subprocess.PIPE, check=True
            ).stdout
        )
        for how in ("keep", "return")
    }
    pages = 3 * 40_000_000 // resource.getpagesize()
    assert faults["return"] > 0.9 * pages
    # The first tensors may lie elsewhere than the next; that is all.
    assert faults["keep"] < 0.5 * pages
