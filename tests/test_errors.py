"""Kinds of errors, and what is said about them."""

import pytest
import torch

from vqtok.errors import describe_failure, is_device_failure, is_out_of_memory

# As PyTorch words the errors of CUDA and its libraries.
ADVICE = (
    "\nSearch for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda for more information.\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace "
    "below might be incorrect.\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."
)
OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free."),
    torch.AcceleratorError("CUDA error: out of memory" + ADVICE),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("could not create a primitive"),
]
DEVICE_FAILURES = [
    torch.AcceleratorError(f"CUDA error: {reason}{ADVICE}")
    for reason in (
        *("an illegal memory access was encountered", "device-side assert triggered"),
        *("unspecified launch failure", "misaligned address", "an illegal instruction"),
        *("uncorrectable ECC error encountered", "the launch timed out and was terminated"),
        *("no kernel image is available for execution on the device", "unknown error"),
    )
]
OTHERS = [
    torch.AcceleratorError("CUDA error: invalid argument" + ADVICE),
    torch.AcceleratorError("CUDA error: invalid configuration argument" + ADVICE),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    RuntimeError("memory format option is only supported by strided tensors"),
    ValueError("out of memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY + DEVICE_FAILURES + OTHERS, ids=str)
def test_errors_of_cuda_are_told_apart(error):
    assert is_out_of_memory(error) == any(error is other for other in OUT_OF_MEMORY)
    assert is_device_failure(error) == any(error is other for other in DEVICE_FAILURES)


def test_a_failed_gpu_is_described_in_one_sentence():
    assert describe_failure(DEVICE_FAILURES[0], "a.mp4") == (
        "a.mp4: the GPU failed (CUDA error: an illegal memory access was encountered): run the "
        "command again, or with --device cpu"
    )
