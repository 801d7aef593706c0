"""What the ops need beside their C++: fakes, gradients and CUDA implementations."""
