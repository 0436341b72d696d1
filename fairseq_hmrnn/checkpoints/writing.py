"""Files that are written whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from typing import Any, Callable

from fairseq import file_io

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # no space, a limit of file sizes, a quota


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
        except BaseException as error:  # such as a full disk, which would stay full
            with contextlib.suppress(OSError):
                os.remove(part)
            if isinstance(error, OSError) and error.errno in FULL and src_path.endswith(".pt"):
                whole = f"{error.strerror} ({src_path} is whole: --restore-file {src_path} goes on from it)"
                raise OSError(error.errno, whole, dst_path) from error
            raise
        return done

    return copy_whole
