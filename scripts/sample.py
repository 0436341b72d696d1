#!/usr/bin/env python3
"""The command `fairseq-hmrnn sample` by its old name."""

import sys

from fairseq_hmrnn.cli.main import run

if __name__ == "__main__":
    run(["sample", *sys.argv[1:]])
