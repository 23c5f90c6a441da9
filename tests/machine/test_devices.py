"""What a process is set up with before it computes."""

import ctypes
import re
import subprocess
import sys

import pytest

from moat.base.errors import ConfigError
from moat.machine import devices

# How many pages the system has to hand out while a process takes, fills and frees 60 MiB ten times, in three parts; the
# first time is not counted.
FAULTS = """
import ctypes, resource, sys
from moat.machine import devices
if sys.argv[1] == "kept":
    devices.keep_freed_memory()
libc, size = ctypes.CDLL(None), 20 * 2**20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
for number in range(11):
    if number == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [libc.malloc(size) for _ in range(3)]
    for part in parts:
        libc.memset(part, 1, size)
    for part in parts:
        libc.free(part)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    found = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
def test_freed_memory_is_kept():
    """Each of ten rounds touches 15,360 pages of 4 KiB."""
    kept, handed_back = faults("kept"), faults("as it is")
    assert kept < 1000 < 10_000 < handed_back, (kept, handed_back)


@pytest.mark.parametrize("threads", [-3, 0, 1025, 100_000])
def test_a_number_of_threads_out_of_range_is_refused(threads):
    with pytest.raises(ConfigError, match=f"--threads {threads}: allowed: 1 to 1024"):
        devices.select("cpu", threads)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"MOAT_GPUS": "0,1"}, r"2 GPU\(s\) of MOAT_GPUS"),
        ({"MOAT_GPUS": ""}, "no GPU on this machine; training and attacks run on the CPU"),
        ({"MOAT_GPUS": "", "CUDA_VISIBLE_DEVICES": "0,1"}, "no GPU"),
        ({"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1,2"}, r"3 GPUs, .* MOAT_GPUS=\$CUDA.*`--resources gpu=3`"),
        ({"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0,1", "MOAT_GPUS": "0,1"}, r"2 GPU\(s\) of MOAT_GPUS"),
    ],
    ids=["named", "none named", "none named of those visible", "an allocation of several", "to lease in an allocation"],
)
def test_one_line_says_which_gpus_jobs_may_lease(environ, said):
    assert re.search(said, devices.gpu_note(environ)) and "\n" not in devices.gpu_note(environ)
