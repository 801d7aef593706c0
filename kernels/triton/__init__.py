"""What the Triton kernels are built of."""
