"""Loads what wsync writes with the reference safetensors package and dequantizes it with ml_dtypes.

Usage: loads_in_python.py <make_example binary> <folder for a virtual environment>. Where this Python lacks the packages,
they are installed into the folder, once; exits 77 (skipped, saying why) where that cannot be done, as without a network.
"""
import json
import os
import subprocess
import sys
import tempfile

PACKAGES = ["safetensors==0.8.0", "numpy==2.2.6", "ml_dtypes==0.5.4"]


def go_on_in_environment(folder, missing):
    """Runs this script again in a virtual environment that has the packages; does not come back."""
    python = os.path.join(folder, "bin", "python")
    complete = os.path.join(folder, "complete")
    if not os.path.exists(complete):
        pip = [python, "-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "15"]
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, timeout=120)
            subprocess.run(pip + PACKAGES, check=True, timeout=240)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"skipped: {missing}, and no environment with it could be made: {error}")
            sys.exit(77)
        open(complete, "w").close()
    os.execv(python, [python] + sys.argv)


try:
    import ml_dtypes
    import numpy as np
    import safetensors
except ImportError as missing:
    environment = os.path.abspath(sys.argv[2])
    if os.path.abspath(sys.prefix) == environment:
        raise  # what was installed there does not work
    go_on_in_environment(environment, missing)


def load(directory):
    """All tensors of a checkpoint, found through its index, with the metadata and sizes checked."""
    index_path = os.path.join(directory, "model.safetensors.index.json")
    if os.path.exists(index_path):
        with open(index_path) as file:
            index = json.load(file)
        shards = sorted(set(index["weight_map"].values()))
    else:
        index, shards = None, ["model.safetensors"]
    tensors = {}
    for shard in shards:
        path = os.path.join(directory, shard)
        with safetensors.safe_open(path, framework="numpy") as file:  # the reference parser checks the layout
            assert file.metadata() == {"format": "pt"}, file.metadata()
            names = set(file.keys())
        with open(path, "rb") as file:
            for name, view in safetensors.deserialize(file.read()):
                assert name in names
                dtype = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "BF16": ml_dtypes.bfloat16, "F32": np.float32}[view["dtype"]]
                tensors[name] = np.frombuffer(bytes(view["data"]), dtype).reshape(view["shape"])
                if index:
                    assert index["weight_map"][name] == shard
    if index:
        assert set(tensors) == set(index["weight_map"])
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    return tensors


def dequantize(codes, scales, granularity):
    scales = scales.astype(np.float64)
    if granularity == "block":
        scales = scales.repeat(128, 0).repeat(128, 1)[: codes.shape[0], : codes.shape[1]]
    return codes.astype(np.float64) * scales  # channel and tensor scales broadcast as [N, 1] and [1]


def check(directory, source, granularity):
    tensors = load(os.path.join(directory, granularity))
    suffix = "_scale_inv" if granularity == "block" else "_scale"
    quantized = 0
    for name, original in source.items():
        if name + suffix not in tensors:
            assert tensors[name].dtype == original.dtype and tensors[name].tobytes() == original.tobytes(), name
            continue
        quantized += 1
        assert tensors[name].dtype == ml_dtypes.float8_e4m3fn
        got = dequantize(tensors[name], tensors[name + suffix], granularity)
        want = original.astype(np.float64)
        error = np.max(np.abs(got - want) / np.abs(want))
        assert error < 1 / 16 + 1e-6, (name, error)
    with open(os.path.join(directory, granularity, "config.json")) as file:
        config = json.load(file)["quantization_config"]
    method = "fp8" if granularity == "block" else "compressed-tensors"
    assert config["quant_method"] == method, config
    assert quantized == 7 and len(tensors) == len(source) + quantized
    print(f"{granularity}: {len(tensors)} tensors load, {quantized} quantized")


def main():
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.argv[1], directory], check=True)
        source = load(os.path.join(directory, "source"))
        for granularity in ("block", "channel", "tensor"):
            check(directory, source, granularity)


main()
