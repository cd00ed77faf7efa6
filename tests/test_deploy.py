"""What deploy/ starts is a command line that the server takes."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from paddlenlp_codegen_task import cli
from paddlenlp_codegen_task.distributed.application import Arguments, app

DEPLOY = Path(__file__).parent.parent / "deploy"


def check(command: list[str]) -> None:
    """The command line gets as far as a model that is not there."""
    assert Path(command[0]).name == "paddlenlp-codegen"
    arguments = [one for one in command[1:] if not one.startswith("--port")]
    done = CliRunner().invoke(
        cli.app,
        [*arguments, "--port=0", "--model=./no/model"],
        env={"PADDLENLP_CODEGEN_API_KEY": "k"},
    )
    assert done.exit_code == 1
    assert done.stderr == "paddlenlp-codegen: --model: there is no folder no/model\n"


def test_the_unit(tmp_path: Path):
    unit = (DEPLOY / "paddlenlp-codegen.service").read_text(encoding="utf-8")
    [command] = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    (tmp_path / "keys").write_text("key\n")
    check(shlex.split(command.replace("${CREDENTIALS_DIRECTORY}", str(tmp_path))))
    [drain] = re.findall(r"--drain-seconds=(\d+)", command)
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert int(stop) > int(drain) + 10  # a step's and the errors' time


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
def test_systemd_takes_the_unit(tmp_path: Path):
    unit = (DEPLOY / "paddlenlp-codegen.service").read_text(encoding="utf-8")
    file = tmp_path / "codegen.service"
    file.write_text(re.sub("^ExecStart=[^ ]*", "ExecStart=/bin/true", unit, flags=re.M))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_the_image(name: str):
    text = (DEPLOY / name).read_text(encoding="utf-8")
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", text, re.M)
    command = json.loads(entry)
    check([one for one in command if not one.startswith("--device")])
    root = DEPLOY.parent
    ignored = (root / ".dockerignore").read_text(encoding="utf-8")
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.M):
        for source in sources.split():
            assert (root / source).exists()
            assert f"\n!{source}\n" in ignored


def test_the_ray_service():
    service = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text(encoding="utf-8"))
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    [application] = config.applications
    module, _, name = application.import_path.partition(":")
    assert getattr(importlib.import_module(module), name) is app
    given = Arguments.model_validate(application.args)

    # Nodes: room for a replica, the keys where they are looked for, and time to end.
    cluster = service["spec"]["rayClusterConfig"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", cluster["rayVersion"])
    [workers] = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert given.api_key_file == "/etc/paddlenlp-codegen/keys"
        assert {one["name"] for one in pod["volumes"]} == set(mounts.values())
        assert set(mounts) == {"/etc/paddlenlp-codegen", "/models"}
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert ports["serve"] == config.http_options.port
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["cpu"]) == given.num_threads
    assert workers["template"]["spec"]["terminationGracePeriodSeconds"] > given.drain_seconds + 10
    most = int(str(given.replicas).split(":")[-1])
    assert workers["maxReplicas"] >= most
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert "PPNLP_HOME=/models" in dockerfile
