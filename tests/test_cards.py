"""What a model forgot on its card: for people, for the hub, whatever names say; sent only when asked."""

import base64
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import markdown_it
import pytest

import measured
from holdfast.cards import HEADING, write_card
from holdfast.display import visible
from payloads import PAYLOADS


def card(report, path, **about):
    write_card(report, path, **{"commands": ["holdfast card a b"], "max_forgetting": 0.1} | about)
    return path.read_text(encoding="utf-8")


def test_the_section_tells_each_texts_forgetting_with_its_interval(tmp_path):
    report = measured.trajectory()
    text = card(report, tmp_path / "README.md")
    section = text[text.index(HEADING) :]
    for name in ("wikipedia", "code"):
        (row,) = [line for line in section.splitlines() if line.startswith(f"| {name} ")]
        kl, ends = (cell.strip() for cell in row.split("|")[2:4])
        low, high = (float(end) for end in ends.split(" to "))
        assert low < report[name].kl_base_tuned.value < high
        assert float(kl) == pytest.approx(report[name].kl_base_tuned.value, abs=report[name].kl_base_tuned.stderr)
    assert f"budget of 0.1 nats per token: {report.verdict(0.1)}" in section
    assert "    holdfast card a b" in section


def test_measuring_again_replaces_the_section_and_keeps_the_rest(tmp_path):
    path, report = tmp_path / "README.md", measured.trajectory()
    path.write_text("---\nlicense: mit\n---\n# Mine\n\nBefore.\n")
    first = card(report, path)
    assert first.index("Before.") < first.index(HEADING)
    path.write_text(f"{first}\n## Mine again\n\nAfter.\n")
    again = card(report, path)
    assert again.count(HEADING) == 1
    assert again.index("Before.") < again.index(HEADING) < again.index("## Mine again") < again.index("After.")
    assert card(report, path) == again
    assert huggingface_hub.metadata_load(path)["license"] == "mit"


@pytest.mark.parametrize("payload", [*PAYLOADS, "| x | y |", "[a](http://b)", "![a](b)", "# h", "`x", "www.x.invalid"])
def test_no_name_is_markdown(payload, tmp_path):
    """A reader of the hub's kind of Markdown finds the same elements as with a mild name, and the name verbatim."""
    made = []
    for name in ("mild", payload):
        text = measured.corpus(documents=2, quote=lambda said, name=name: f"{said}{name}")
        path = tmp_path / f"{len(made)}.md"
        written = card(measured.report(measured.checkpoint(text)), path)
        html = markdown_it.MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(
            written[written.index(HEADING) :]
        )
        made.append(html)
    mild, hostile = made
    assert re.findall(r"<\w+", hostile) == re.findall(r"<\w+", mild)
    shown = re.sub(r"\s+", " ", visible(payload).replace("\n", " "))
    cell = re.search(r"<td>wikipedia(.*?)</td>", hostile, flags=re.DOTALL)[1]
    plain = cell.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    assert re.sub(r"\s+", " ", plain).strip() == shown.strip()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's API as taking one small file needs. A class because http.server asks for one."""

    heard: list

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.heard.append((self.path, self.headers.get("Authorization"), body))
        if self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            return self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if self.path.endswith("/commit/main"):
            commit = f"http://{self.headers['Host']}/someone/adapter/commit/{'1' * 40}"
            return self._answer({"commitUrl": commit, "commitOid": "1" * 40, "hookOutput": ""})
        return self._answer({})

    def do_GET(self):
        self.heard.append((self.path, self.headers.get("Authorization"), b""))
        self._answer({})

    def _answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    heard = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Heard", (Hub,), {"heard": heard}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    server.server_close()


def typed(arguments, folder, endpoint):
    code = "from holdfast.cli import main; main()"
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_canary", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_a_card_is_written_beside_an_adapter_and_sent_only_when_asked(tiny: Path, kelp: Path, tmp_path: Path, hub):
    from holdfast import adapters, models
    from holdfast.methods import Lora

    endpoint, heard = hub
    base = models.load_base(str(tiny), dtype="float32", device="cpu")
    tuned = adapters.attach_adapter(base, Lora(r=2), seed=0)
    adapters.save_adapter(tuned, tmp_path / "adapter")
    asked = ["card", tiny, tmp_path / "adapter", "--text", kelp, "--dtype", "float32", "--context", 32]
    done = typed(asked, tmp_path, endpoint)
    assert done.returncode == 0, done.stderr
    assert heard == []
    written = (tmp_path / "adapter" / "README.md").read_text()
    assert HEADING in written
    assert "kelp" in written
    done = typed([*asked, "--push", "someone/adapter"], tmp_path, endpoint)
    assert done.returncode == 0, done.stderr
    (commit,) = [body for path, _, body in heard if path == "/api/models/someone/adapter/commit/main"]
    sent = [json.loads(line) for line in commit.splitlines()]
    (file,) = [one["value"] for one in sent if one["key"] == "file"]
    assert file["path"] == "README.md"
    assert base64.b64decode(file["content"]).decode() == (tmp_path / "adapter" / "README.md").read_text()
    assert {token for path, token, _ in heard if "/commit/" in path} == {"Bearer hf_canary"}
    assert "hf_canary" not in done.stdout + done.stderr + written
    refused = typed([*asked, "--push", "someone/adapter"], tmp_path, "http://127.0.0.1:9")
    assert refused.returncode == 5, refused.stderr
    assert "expected the hub to take the card, at someone/adapter" in refused.stderr
