"""`python -m fairseq_hmrnn` is the command fairseq-hmrnn. Without arguments it prints the package's folder, and with
--options what `options` prints."""

import sys

from .cli.main import run

SHORT = {(): ["path"], ("--options",): ["options"]}

if __name__ == "__main__":
    run(SHORT.get(tuple(sys.argv[1:]), sys.argv[1:]))
