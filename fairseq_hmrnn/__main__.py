"""Print the package's folder, for fairseq commands run from anywhere: --user-dir "$(python -m fairseq_hmrnn)"."""

import os

print(os.path.dirname(os.path.abspath(__file__)))
