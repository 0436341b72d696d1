"""fairseq-train, but that --bf16 trains on this machine, as it does with fairseq-hydra-train: the command itself then
takes the machine for a TPU, and ends.

    python fairseq_train.py ARGUMENTS...
"""

import sys


def without_tpu():
    """Have fairseq read the options of a training so, in this process."""
    from fairseq import options

    parse = options.parse_args_and_arch

    def parsed(*args, **kwargs):
        found = parse(*args, **kwargs)
        found.tpu = False
        return found

    options.parse_args_and_arch = parsed


if __name__ == "__main__":
    del sys.path[0]  # the benchmarks' own modules
    from fairseq_cli.train import cli_main  # first, for it sets the form of the log

    without_tpu()
    cli_main()
