"""The hub, played by a server on loopback: what is asked of it, and what is not."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"

SCRIPT = """
import sys
from darkroom_engine import Engine, LoraLoadError, ModelLoadError

engine = Engine("cpu", num_threads=1)
for kind, source in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        if kind == "model":
            print(engine.load("hub", source=source).family)
        else:
            engine.load_lora("hub", kind, source=source)
            print("loaded")
    except (LoraLoadError, ModelLoadError) as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """The repository "studio/model" is a folder; it answers as huggingface.co does, as far as its client looks."""

    address: ClassVar[str]
    folder: ClassVar[Path]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def _answer(self, *, has_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/studio/model"):
            files = [str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()]
            listing: object = {"id": "studio/model", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            if "/tree/" in path:
                listing = [{"type": "file", "path": file, "oid": COMMIT, "size": 1} for file in files]
            self._send(200, json.dumps(listing).encode(), has_body=has_body)
            return
        file = self.folder / path.partition("/resolve/")[2].partition("/")[2]
        if not path.startswith("/studio/model/resolve/") or not file.is_file():
            self._send(404, b"{}", has_body=has_body)
            return
        self.asked.append(str(file.relative_to(self.folder)))
        self._send(200, file.read_bytes(), has_body=has_body)

    def _send(self, status: int, body: bytes, *, has_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path) -> Iterator[type[Hub]]:
    """The tiny model with a safety checker beside it, of which there is only a pickle, and two adapters."""
    folder = tmp_path / "repository"
    for file in model_folder.rglob("*"):
        if file.is_file():
            copy = folder / file.relative_to(model_folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, copy)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").unlink()
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index | {"safety_checker": checker}))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"pickle")
    Hub.folder, Hub.asked = folder, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Hub
    server.shutdown()
    server.server_close()
    thread.join()


def load(hub: type[Hub], tmp_path: Path, *what: str) -> list[str]:
    """Load from the hub in a process of its own: the client reads its address once."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *what], capture_output=True, text=True, env=environment, timeout=100, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout.splitlines()


def test_only_what_the_family_takes_is_brought_from_the_hub(hub: type[Hub], tmp_path: Path) -> None:
    assert load(hub, tmp_path, "model", "studio/model") == ["sd"]
    assert "unet/diffusion_pytorch_model.safetensors" in hub.asked
    assert not [file for file in hub.asked if file.startswith("safety_checker")]


def test_a_lora_is_one_file_of_a_repository(hub: type[Hub], tmp_path: Path) -> None:
    unet = load_file(hub.folder / "unet" / "diffusion_pytorch_model.safetensors")
    module = next(key for key in unet if key.endswith("attn1.to_q.weight")).removesuffix(".weight")
    width = len(unet[f"{module}.weight"])
    (hub.folder / "loras").mkdir()
    lora = {f"unet.{module}.lora_A.weight": torch.ones(1, width), f"unet.{module}.lora_B.weight": torch.ones(width, 1)}
    save_file(lora, hub.folder / "loras" / "ink.safetensors")
    source = "studio/model/loras/ink.safetensors"
    assert load(hub, tmp_path, "model", str(hub.folder), "ink", source) == ["sd", "loaded"]
    assert hub.asked.count("loras/ink.safetensors") >= 1
    assert not [file for file in hub.asked if file.startswith("unet")]


def test_what_the_hub_does_not_have_is_refused_in_one_sentence(hub: type[Hub], tmp_path: Path) -> None:
    said = load(hub, tmp_path, "model", "studio/other", "model", "studio/model/other.safetensors")
    assert len(said) == 2
    assert said[0].startswith("model 'hub' cannot be loaded: studio/other could not be had from the hub: ")
    assert said[1].startswith("model 'hub' cannot be loaded: studio/model/other.safetensors could not be had from the")
