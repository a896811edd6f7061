"""Memory kept between steps: the system is asked for it once."""

import resource
import subprocess
import sys

import pytest

from kaizen_dist.distributed.malloc import keep_freed_memory

CODE = """
import resource, sys, torch
from kaizen_dist.distributed.malloc import keep_freed_memory, return_freed_memory
assert {"keep": keep_freed_memory, "return": return_freed_memory}[sys.argv[1]]()
def step():
    return [torch.ones(10_000_000) for _ in range(3)]  # 40 MB each
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# The first steps may lie elsewhere than the next.
print(min(faults() for _ in range(12)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
def test_a_step_finds_its_pages_where_an_earlier_one_left_them():
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
    assert faults["keep"] < 0.1 * pages
