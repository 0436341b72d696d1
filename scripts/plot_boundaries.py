#!/usr/bin/env python3
"""The command `fairseq-hmrnn plot` by its old name."""

import sys

from fairseq_hmrnn.cli.main import run

if __name__ == "__main__":
    run(["plot", *sys.argv[1:]])
