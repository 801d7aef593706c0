"""What the ops of csrc/bindings.cpp need beside their C++: fakes, gradients and CUDA implementations."""

from . import autograd, cuda, fakes  # noqa: F401
