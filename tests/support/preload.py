"""What the server that forks commands imports before the first of them (see `runs`)."""

from armd_scale.parallel.environment import read_environment

read_environment()  # DeepSpeed asks which accelerator there is as it is imported

import armd_scale.eval.evaluate  # noqa: E402
import armd_scale.train.trainer  # noqa: E402, F401
import tests.support.cli  # noqa: E402, F401
