"""Starting a model, or a part of it, from files that its options name."""

from __future__ import annotations

import os
from typing import Callable, Optional


class StartsFromFiles:
    """Mixin of models that start from files which their options name. A trained model that is loaded later does without
    them; training does not."""

    missing_file: Optional[str] = None

    def start_from(self, option: str, path: str, load: Callable[[str], None]) -> None:
        """Have `load` read the file, if the option names one that is there."""
        if path and os.path.isfile(path):
            load(path)
        elif path:
            kind = "a folder, not a file" if os.path.isdir(path) else "not there"
            self.missing_file = f"--{option}: {path} is {kind}: give another file, or leave it out"

    def check_files(self) -> None:
        """FileNotFoundError if it was to start from a file that is not there, and nothing was loaded since."""
        if self.missing_file is not None:
            raise FileNotFoundError(self.missing_file)

    def load_state_dict(self, *args, **kwargs):
        self.missing_file = None
        return super().load_state_dict(*args, **kwargs)
