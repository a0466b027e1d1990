"""The committed messages are what protoc makes of the contract."""
import shutil
import subprocess

import pytest

from conftest import ROOT

FILES = ("qmatmul_pb2.py", "qmatmul_pb2.pyi")


def test_generated_messages_match_the_contract(tmp_path):
    if shutil.which("protoc") is None:
        pytest.skip("protoc is not installed")
    version = subprocess.run(["protoc", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    if not version.startswith("3.21."):
        pytest.skip(f"protoc is {version}; the committed files come from 3.21")
    subprocess.run([ROOT / "client/python/generate", tmp_path], check=True)
    for name in FILES:
        committed = (ROOT / "client/python/src/qmatmul/v1" / name).read_bytes()
        made = (tmp_path / "qmatmul/v1" / name).read_bytes()
        assert committed == made, f"{name} is stale: run client/python/generate and commit it"
