"""The server that forks the processes of tests.

A fresh Python needs seconds to import torch, megatron-core and DeepSpeed. The server imports them
once for all tests of a pytest process and forks from there.
"""

import multiprocessing

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.support.preload"])
