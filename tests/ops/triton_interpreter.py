"""Triton's interpreter, less what it does for nothing: the tests of the kernels take less than half the time."""

import contextlib

import triton.language as tl
from triton.runtime import interpreter


def leave_out_what_is_of_no_use():
    """Where this release of Triton has it: the search for what to replace in its language, in every call of a function
    within a kernel, where all is replaced; the sums in 64 bits that show an overflow, which it forgets unless it
    debugs."""
    replace = interpreter._patch_lang

    def replace_once(function):
        modules = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        if any(map(tl.core.is_builtin, [tl.tensor.reshape, *(module.load for module in modules)])):
            return replace(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = replace_once
    options = interpreter.interpreter_builder.options
    if not options.debug:
        object.__setattr__(options, "sanitize_overflow", False)  # the class is a frozen one


with contextlib.suppress(AttributeError):
    leave_out_what_is_of_no_use()
