"""What the server of `tests.support.processes` imports before it forks the first process."""

from jaxtyping import install_import_hook

# Checks the shapes in annotations, as --jaxtyping-packages does in pytest's own process. Must come
# before the first import of armd_scale.
install_import_hook("armd_scale", "beartype.beartype")

from armd_scale.parallel.environment import read_environment  # noqa: E402

read_environment()  # DeepSpeed asks which accelerator there is as it is imported

import armd_scale.eval.evaluate  # noqa: E402
import armd_scale.train.trainer  # noqa: E402, F401
import tests.support.cli  # noqa: E402, F401
