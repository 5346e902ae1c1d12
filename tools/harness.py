"""Run lm-evaluation-harness with the model `armd_scale`; all options are the harness's own.

Example: python tools/harness.py --model armd_scale --model_args checkpoint=runs/demo --tasks piqa

--model_args: checkpoint=PATH or hf=FOLDER, and streams, max_length, add_bos_token, prefix_token_id.
"""

import sys

from armd_scale.errors import ArmdError, exit_on_interrupt, run_command

with exit_on_interrupt():
    from armd_scale.log import configure


def main() -> None:
    """Register the model and run the harness's command line."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        # The harness prints its own help next and exits.
        print(__doc__)
    try:
        # Imported here, because lm-evaluation-harness is optional: the extra `eval`.
        from armd_scale.eval.harness.model import run_harness
    except ModuleNotFoundError as error:
        raise ArmdError(
            f"lm-evaluation-harness must be installed, but {error.name} is missing: "
            "pip install 'armd_scale[eval]'"
        ) from error
    configure()
    run_harness()


if __name__ == "__main__":
    run_command(main)
