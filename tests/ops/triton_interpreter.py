"""Triton's interpreter, less what it does for nothing: the tests of the kernels take less than half the time."""

import contextlib
import functools
import inspect
import math

import triton.language as tl
from triton.runtime import interpreter


def leave_out_what_is_of_no_use():
    """Where this release of Triton has it: the search for what to replace in its language, in every call of a function
    within a kernel, where all is replaced; the sums in 64 bits that show an overflow, which it forgets unless it
    debugs; the table of NumPy's types that it makes for every operation, and the type of every tensor's shape."""
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
    find, numpy_types = interpreter._get_np_dtype, {}

    def numpy_type(type):
        name = type.scalar.name  # the types of pointers cannot be hashed
        if name not in numpy_types:
            numpy_types[name] = find(type)
        return numpy_types[name]

    interpreter._get_np_dtype = numpy_type
    if "self.shape = tuple([constexpr(s) for s in self.shape])" in inspect.getsource(tl.tensor.__init__):
        tl.tensor.__init__ = init_tensor


@functools.lru_cache(maxsize=None)
def shape_of(sizes):
    """The number of elements and the shape, as a tensor of Triton's language has them."""
    return tl.constexpr(math.prod(sizes)), tl.tuple([tl.constexpr(size) for size in sizes])


def init_tensor(tensor, handle, type):
    tensor.handle, tensor.type, tensor.dtype = handle, type, type.scalar
    tensor.numel, tensor.shape = shape_of((*type.shape,) if type.is_block() else ())


with contextlib.suppress(AttributeError):
    leave_out_what_is_of_no_use()
