"""Files that are written whole, or not at all."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any, Callable

from fairseq import file_io


def copy_whole_files(copy: Callable[..., Any]) -> Callable[..., Any]:
    """fairseq copies one checkpoint over another, which a process that is killed meanwhile leaves cut off: write the
    copy beside and rename it."""

    @functools.wraps(copy)
    def copy_whole(src_path, dst_path, overwrite=False):
        if not (overwrite and file_io.PathManager.supports_rename(dst_path)):
            return copy(src_path, dst_path, overwrite=overwrite)
        part = dst_path + ".tmp"
        try:
            done = copy(src_path, part, overwrite=True)
            os.replace(part, dst_path)
        except BaseException:  # such as a full disk, which would stay full
            with contextlib.suppress(OSError):
                os.remove(part)
            raise
        return done

    return copy_whole
