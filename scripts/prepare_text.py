#!/usr/bin/env python3
"""prepare_text.py TRAIN [VALID [TEST]] --dest DIR: binarise text for character-level language models (see --help)."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))  # runs uninstalled too

from fairseq_hmrnn.cli.errors import run_command  # noqa: E402
from fairseq_hmrnn.cli.prepare_text import main  # noqa: E402

if __name__ == "__main__":
    run_command(main)
