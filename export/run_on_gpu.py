"""Runs a `.tflite` file on LiteRT's GPU engine, and the rest on the CPU.

A separate program, started by `export/gpu.py`: the engine reports in its log,
and a driver may crash.

    python export/run_on_gpu.py model.tflite images.npy scores.npy float16
"""

import sys

import numpy as np
from ai_edge_litert.compiled_model import (
    CompiledModel,
    GpuOptions,
    HardwareAccelerator,
    Options,
)


def main(path: str, images: str, output: str, precision: str) -> None:
    """Runs the first signature on each batch, and writes its outputs."""
    options = Options(
        hardware_accelerators=HardwareAccelerator.GPU | HardwareAccelerator.CPU,
        gpu_options=GpuOptions(enforce_f32=precision == "float32"),
    )
    model = CompiledModel.from_file(path, options=options)
    print("compiled", flush=True)
    signature = next(
        name
        for name in model.get_signature_list()
        if model.get_signature_index(name) == 0
    )
    (taken,) = model.get_input_tensor_details(signature).values()
    (given,) = model.get_output_tensor_details(signature).values()
    inputs, outputs = (
        model.create_input_buffers(0),
        model.create_output_buffers(0),
    )
    scores = []
    batches = np.load(images).astype(taken["dtype"])
    for batch in batches.reshape(-1, *taken["shape"]):
        inputs[0].write(batch)
        model.run_by_index(0, inputs, outputs)
        size = int(np.prod(given["shape"]))
        scores.append(outputs[0].read(size, np.float32))
    np.save(output, np.reshape(scores, (-1, given["shape"][-1])))


if __name__ == "__main__":
    main(*sys.argv[1:])
