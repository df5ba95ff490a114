"""Lack of memory: recognised whatever says it, answered by smaller tiles, and reported in one message at the end."""

import pytest
import torch

from alignsr.core.memory import is_out_of_memory, with_oom_retry
from alignsr.nodes.host import LocalHost


def runs_below(limit_px, error, tried):
    def run(tile_px):
        tried.append(tile_px)
        if tile_px > limit_px:
            raise error
        return f"done with {tile_px}"

    return run


OUT_OF_MEMORY = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "python": MemoryError(),
    "CPU, Linux": RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
    "CPU, Windows": RuntimeError("[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried"),
    "CPU, oneDNN": RuntimeError("could not allocate memory for a scratchpad"),
    "CUDA driver": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuBLASLt": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtCreate(&handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cuFFT": RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    "cuSOLVER": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    "cuSPARSE": RuntimeError("CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`"),
    "HIP": RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    "HIP runtime": RuntimeError("HIP error: hipErrorOutOfMemory"),
    "hipBLAS": RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    "rocBLAS": RuntimeError("rocblas_status_memory_error"),
    "MIOpen": RuntimeError("miopenStatusAllocFailed"),
    "Metal": RuntimeError("MPS backend out of memory (MPS allocated: 8.87 GB, other allocations: 1.04 MB)"),
    "Metal, one buffer": RuntimeError("Invalid buffer size: 16.00 GiB"),
    "XPU": RuntimeError("XPU out of memory. Tried to allocate 1.50 GiB"),
    "oneAPI": RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
}
OTHERS = {
    "shape": RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    "cuBLAS, another status": RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    "illegal access": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "half precision": RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'"),
    "not finite": FloatingPointError("sr: x produced NaN"),
    "another class": ValueError("out of memory"),
}


@pytest.mark.parametrize("case", OUT_OF_MEMORY)
def test_lack_of_memory_is_recognised_on_every_device(case):
    assert is_out_of_memory(OUT_OF_MEMORY[case])
    assert LocalHost().is_oom(OUT_OF_MEMORY[case])


@pytest.mark.parametrize("case", OTHERS)
def test_other_errors_are_not_lack_of_memory(case):
    assert not is_out_of_memory(OTHERS[case])


@pytest.mark.parametrize("error", [OUT_OF_MEMORY["torch"], OUT_OF_MEMORY["cuBLAS"], OUT_OF_MEMORY["python"]])
def test_out_of_memory_halves_the_tile_aloud(error):
    tried, heard = [], []
    assert with_oom_retry(runs_below(300, error, tried), 1152, notify=heard.append) == "done with 288"
    assert tried == [1152, 576, 288]
    assert heard == [
        "out of memory with tiles of 1152 px; trying again with 576 px",
        "out of memory with tiles of 576 px; trying again with 288 px",
    ]


@pytest.mark.gpu
def test_real_gpu_allocation_failure_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, device="cuda")
    assert is_out_of_memory(caught.value)


def test_real_cpu_allocation_failure_is_recognised():
    tried, heard = [], []

    def run(tile_px):
        tried.append(tile_px)
        return torch.empty(2**55 if tile_px > 100 else 1).numel()

    assert with_oom_retry(run, 200, notify=heard.append) == 1
    assert tried == [200, 100]


def test_out_of_memory_at_the_smallest_tile_is_one_clear_error():
    tried, heard = [], []
    cause = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(MemoryError, match="got out of memory at 64 px and 64 px is the smallest allowed") as caught:
        with_oom_retry(runs_below(1, cause, tried), 256, 64, notify=heard.append)
    assert tried == [256, 128, 64]
    assert caught.value.__cause__ is cause


def test_other_errors_pass_through():
    tried = []
    with pytest.raises(RuntimeError, match="shape mismatch"):
        with_oom_retry(runs_below(1, RuntimeError("shape mismatch"), tried), 256, notify=lambda text: None)
    assert tried == [256]
