"""The committed messages are what protoc makes of the contract."""
import subprocess

from conftest import ROOT

STALE = "the committed messages are stale: run client/python/generate and commit what it makes"


def test_generated_files_are_protocs(tmp_path):
    """By Debian 12's protoc, byte for byte, the type hints too."""
    version = subprocess.run(["protoc", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    assert version.startswith("3.21."), f"protoc is {version}; the committed files come from Debian 12's 3.21"
    subprocess.run([ROOT / "client/python/generate", tmp_path], check=True)
    for name in ("qmatmul_pb2.py", "qmatmul_pb2.pyi"):
        committed = (ROOT / "client/python/src/qmatmul/v1" / name).read_bytes()
        assert committed == (tmp_path / "qmatmul/v1" / name).read_bytes(), f"{name}: {STALE}"
