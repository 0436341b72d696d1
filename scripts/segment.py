#!/usr/bin/env python3
"""The command `fairseq-hmrnn segment` by its old name."""

import sys

from fairseq_hmrnn.cli.main import run

if __name__ == "__main__":
    run(["segment", *sys.argv[1:]])
