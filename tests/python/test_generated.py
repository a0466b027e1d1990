"""The committed messages are what protoc makes of the contract."""
import subprocess

from google.protobuf import descriptor_pb2
from qmatmul.v1 import qmatmul_pb2

from conftest import ROOT

STALE = "the committed messages are stale: run client/python/generate and commit what it makes"


def test_the_messages_are_the_contract(tmp_path):
    """By any protoc: the descriptor that the committed file carries."""
    made = tmp_path / "set.pb"
    subprocess.run(
        ["protoc", f"--proto_path={ROOT}/proto", f"--descriptor_set_out={made}", "qmatmul/v1/qmatmul.proto"], check=True
    )
    (contract,) = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto()
    qmatmul_pb2.DESCRIPTOR.CopyToProto(committed)
    for message in contract.message_type:  # protoc's own addition, which the Python runtime does not keep
        for field in message.field:
            field.ClearField("json_name")
    assert committed == contract, STALE


def test_generated_files_are_protocs(tmp_path):
    """By Debian 12's protoc, byte for byte, the type hints too."""
    version = subprocess.run(["protoc", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    assert version.startswith("3.21."), f"protoc is {version}; the committed files come from Debian 12's 3.21"
    subprocess.run([ROOT / "client/python/generate", tmp_path], check=True)
    for name in ("qmatmul_pb2.py", "qmatmul_pb2.pyi"):
        committed = (ROOT / "client/python/src/qmatmul/v1" / name).read_bytes()
        assert committed == (tmp_path / "qmatmul/v1" / name).read_bytes(), f"{name}: {STALE}"
