"""onnxruntime's MatMulInteger as a peer of kernels_bench, spoken to over pipes.

Requests on standard input, one line each, answers on standard output:
  prepare M K N THREADS PRECISE   then M*K int8 and K*N int8 values; answers "ok" or "no REASON"
  run COUNT                       answers the nanoseconds of one run, averaged
  result                          answers "ok", then M*N int32 values
Activations are handed over as uint8 with zero point 128, the form onnxruntime is fast in. PRECISE 1 sets
session.x64quantprecision, without which its AVX2 path saturates in 16 bits.
"""

import sys
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


class Product:
    def __init__(self, m, k, n, threads, precise, activations, weight):
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["a", "b", "zero"], ["c"])],
            "product",
            [helper.make_tensor_value_info("a", TensorProto.UINT8, [m, k])],
            [helper.make_tensor_value_info("c", TensorProto.INT32, [m, n])],
            [numpy_helper.from_array(weight, "b"), numpy_helper.from_array(np.uint8(128), "zero")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if precise:
            options.add_session_config_entry("session.x64quantprecision", "1")
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.threads = threads
        self.input = (activations.view(np.uint8) ^ 128).reshape(m, k)
        self.binding = self.session.io_binding()
        self.binding.bind_cpu_input("a", self.input)
        self.output = np.zeros((m, n), np.int32)
        value = onnxruntime.OrtValue.ortvalue_from_numpy(self.output)
        self.binding.bind_ortvalue_output("c", value)

    def run(self, count):
        clock = time.process_time_ns if self.threads == 1 else time.perf_counter_ns
        start = clock()
        for _ in range(count):
            self.session.run_with_iobinding(self.binding)
        return (clock() - start) / count

    def result(self):
        return self.binding.copy_outputs_to_cpu()[0].astype("<i4")


def main():
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    product = None
    for line in iter(source.readline, b""):
        words = line.split()
        if words[0] == b"prepare":
            m, k, n, threads, precise = map(int, words[1:])
            activations = np.frombuffer(source.read(m * k), np.int8)
            weight = np.frombuffer(source.read(k * n), np.int8).reshape(k, n)
            product = Product(m, k, n, threads, precise, activations, weight)
            sink.write(b"ok\n")
        elif words[0] == b"run":
            sink.write(b"%f\n" % product.run(int(words[1])))
        else:
            sink.write(b"ok\n" + product.result().tobytes())
        sink.flush()


if __name__ == "__main__":
    main()
