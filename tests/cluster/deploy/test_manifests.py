from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.deploy.render import FOLDER, MANIFESTS, SettingsError, documents, main, read_settings, render
from tests.testbed.kubernetes import CustomResources
from tests.testbed.processes import REPOSITORY

KUBERAY = ["kuberay/cluster.yaml", "kuberay/job.yaml"]


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return read_settings(FOLDER / "settings.yaml")


@pytest.fixture(scope="module")
def custom_resources() -> CustomResources:
    folder = (REPOSITORY / ".." / "shared" / "kuberay-crds").resolve()
    if not folder.is_dir():
        pytest.skip(f"{folder}: KubeRay's definitions are not on this machine")
    return CustomResources(folder)


def ray_cluster(manifest: str, settings: dict[str, str]) -> dict[str, Any]:
    """The spec of the cluster that a KubeRay manifest makes."""
    spec = documents(manifest, settings)[0]["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(manifest: str, settings: dict[str, str]) -> list[dict[str, Any]]:
    spec = ray_cluster(manifest, settings)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


# ---- KubeRay


@pytest.mark.parametrize("manifest", KUBERAY)
def test_kuberay_takes_the_manifest(manifest: str, settings: dict[str, str], custom_resources: CustomResources) -> None:
    own, *others = documents(manifest, settings)
    assert custom_resources.knows(own)
    assert list(custom_resources.problems(own)) == []
    assert [other["kind"] for other in others] == ["NetworkPolicy"]


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (["spec", "enableIntreeAutoscaling"], True, "'enableIntreeAutoscaling' was unexpected"),
        (["spec", "workerGroupSpecs", 0, "maxReplicas"], "four", "'four' is not of type 'integer'"),
        (["spec", "headGroupSpec", "template", "spec", "containers", 0, "envForm"], [], "'envForm' was unexpected"),
        (["spec", "authOptions", "mode"], "password", "'password' is not one of"),
        (["spec", "workerGroupSpecs", 0, "groupName"], None, "None is not of type 'string'"),
    ],
)
def test_kuberay_refuses_a_manifest_with_a_mistake(
    path: list[Any], value: Any, problem: str, settings: dict[str, str], custom_resources: CustomResources
) -> None:
    document = documents("kuberay/cluster.yaml", settings)[0]
    place: Any = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert [found for found in custom_resources.problems(document) if problem in found]


def test_a_ray_job_runs_on_the_cluster_of_the_cluster_manifest(settings: dict[str, str]) -> None:
    assert ray_cluster("kuberay/job.yaml", settings) == ray_cluster("kuberay/cluster.yaml", settings)


@pytest.mark.parametrize("manifest", KUBERAY)
def test_a_pod_has_time_to_drain_and_to_save(manifest: str, settings: dict[str, str]) -> None:
    worker = pods(manifest, settings)[1]
    drain = {entry["name"]: entry["value"] for entry in worker["containers"][0]["env"]}
    seconds = float(drain["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert worker["terminationGracePeriodSeconds"] >= seconds + 30


@pytest.mark.parametrize("manifest", KUBERAY)
def test_no_pod_runs_as_root_and_every_mount_has_its_volume(manifest: str, settings: dict[str, str]) -> None:
    for pod in pods(manifest, settings):
        assert pod["securityContext"]["runAsNonRoot"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert "livenessProbe" in container
            assert any(mount["mountPath"] == "/dev/shm" for mount in container["volumeMounts"])


@pytest.mark.parametrize("manifest", KUBERAY)
def test_the_dashboard_is_inside_the_clusters_network_and_asks_for_a_token(
    manifest: str, settings: dict[str, str]
) -> None:
    spec = ray_cluster(manifest, settings)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not spec["headGroupSpec"].get("enableIngress")
    policy = documents(manifest, settings)[-1]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert not any("ipBlock" in peer or peer == {} for rule in policy["ingress"] for peer in rule["from"])


@pytest.mark.parametrize("manifest", KUBERAY)
def test_workers_go_up_and_down_between_the_settings(manifest: str, settings: dict[str, str]) -> None:
    group = ray_cluster(manifest, settings | {"workers_min": "0", "workers_max": "16"})["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 16)
    assert ray_cluster(manifest, settings)["enableInTreeAutoscaling"]


# ---- the cluster launcher


def test_ray_up_takes_the_launchers_file(settings: dict[str, str]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(render("aws.yaml", settings))
    validate_config(prepare_config(config))
    assert config["available_node_types"]["spot"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_ray_up_refuses_a_launchers_file_with_a_mistake(settings: dict[str, str]) -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(render("aws.yaml", settings))
    config["idle_timeout_minute"] = 5
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config(config))


# ---- all of them


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_holds_names_of_secrets_and_no_values(manifest: str, settings: dict[str, str]) -> None:
    text = render(manifest, settings)
    named = re.findall(r"(?:API_KEY|ACCESS_KEY\w*|AUTH_TOKEN|PASSWORD)\s*[:=]\s*(\S+)", text)
    assert all(value.startswith("$(") for value in named), named


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_the_shell_lines_of_a_manifest_are_whole(manifest: str, settings: dict[str, str]) -> None:
    if manifest.endswith(".sh"):
        scripts = [render(manifest, settings)]
    else:
        scripts = list(_commands(documents(manifest, settings)))
        assert scripts
    for script in scripts:
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def _commands(node: Any) -> Any:
    """Every shell command of a manifest."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "command":
                yield value[-1]
            elif name == "entrypoint":
                yield value
            elif name.endswith("_commands"):
                yield from value
            else:
                yield from _commands(value)
    elif isinstance(node, list):
        for value in node:
            yield from _commands(value)


@pytest.mark.parametrize("manifest", ["kuberay/job.yaml", "slurm.sh"])
def test_what_a_manifest_trains_is_a_configuration_that_jobs_train_takes(
    manifest: str, settings: dict[str, str]
) -> None:
    from jobs.config.loading import load_config

    text = render(manifest, settings).replace("\\\n", " ").replace("$RANKS", "2")
    command = re.search(r"python -m jobs\.train (\S+) (.*?)(?: & driver.*)?$", text, re.MULTILINE)
    assert command
    config = load_config(str(REPOSITORY / command[1]), command[2].split())
    assert config.run == settings["run"]
    assert config.data.validation == settings["shards"] + "/validation"


@pytest.mark.parametrize("interface", ["", "ens5"])
@pytest.mark.parametrize("manifest", MANIFESTS)
def test_the_interface_reaches_the_ranks(manifest: str, interface: str, settings: dict[str, str]) -> None:
    """An empty one is the same as none to gloo and NCCL."""
    settings = settings | {"interface": interface}
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    if manifest in KUBERAY:
        environment = {entry["name"]: entry["value"] for entry in pods(manifest, settings)[1]["containers"][0]["env"]}
        assert [environment[name] for name in names] == [interface] * 2
    else:
        text = render(manifest, settings)
        if manifest == "aws.yaml":
            text = yaml.safe_load(text)["worker_start_ray_commands"][-1]
        exports = next(line for line in re.findall(r"export [^;\n]*", text) if names[0] in line)
        shell = f"{exports}; printf '%s,' " + " ".join(f'"${name}"' for name in names)
        shown = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, env={"PATH": "/bin"})
        assert shown.stdout == f"{interface}," * 2


def test_the_versions_of_ray_agree(settings: dict[str, str]) -> None:
    assert f"ray=={settings['ray_version']}" in (REPOSITORY / "requirements.lock").read_text().splitlines()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("worker_max=3", "unknown setting 'worker_max'; did you mean 'workers_max'?"),
        ("workers_max", "'workers_max': an override is name=value"),
        ("name=a b$(rm)", "must be a plain word, number or URL"),
        ("gpus=two", "workers_min, workers_max and gpus must be numbers"),
    ],
)
def test_a_setting_that_is_wrong_is_told_in_one_line(
    override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["aws.yaml", override])
    assert message in str(left.value)
    assert "\n" not in str(left.value)


def test_a_setting_that_is_missing_is_named(settings: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="needs the setting 'image'"):
        render("aws.yaml", {name: value for name, value in settings.items() if name != "image"})


def test_every_setting_is_used_somewhere(settings: dict[str, str]) -> None:
    texts = "".join((FOLDER / manifest).read_text() for manifest in MANIFESTS)
    assert [name for name in settings if "${" + name + "}" not in texts] == []


# ---- the image


def dockerfile() -> list[list[str]]:
    text = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text())
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_copies_what_is_there_and_is_not_ignored() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = [
        words[-2].rstrip("/") for words in dockerfile() if words[0] == "COPY" and not words[1].startswith("--from")
    ]
    assert set(copied) == allowed
    assert all((REPOSITORY / path).exists() for path in copied)


def test_the_image_has_every_package_that_a_job_imports() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")} - {"tests"}
    copied = {words[-1].rstrip("/") for words in dockerfile() if words[0] == "COPY"}
    assert packages <= copied


def test_the_image_runs_as_nobody_special() -> None:
    users = [words[1] for words in dockerfile() if words[0] == "USER"]
    assert users
    assert users[-1].split(":")[0] not in ("root", "0")


@pytest.mark.parametrize("path", ["data/digits/x.tar", "runs/a/config.yaml", ".git/HEAD", ".env", "secrets.pem"])
def test_a_submitted_job_leaves_at_home_what_it_does_not_need(path: str) -> None:
    patterns = [
        line
        for name in (".rayignore", ".gitignore")
        for line in (REPOSITORY / name).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    parts = Path(path).parts
    assert any(fnmatch.fnmatch(part, pattern.strip("/")) for pattern in patterns for part in (parts[0], parts[-1]))


def test_render_prints_a_manifest() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "cluster.deploy.render", "kuberay/job.yaml", "workers_max=7", "gpus=8"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    job = next(yaml.safe_load_all(shown.stdout))
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] == 7
    assert "ray.workers=[8,56]" in job["spec"]["entrypoint"]


def test_every_step_of_the_slurm_job_has_the_jobs_environment(settings: dict[str, str]) -> None:
    """After `sbatch --export=NONE` a step has none of its own, not even a PATH in which to find its command."""
    steps = re.findall(r"srun --.*", re.sub(r"(?m)^\s*#.*", "", render("slurm.sh", settings)))
    assert len(steps) == 2
    assert all("--export=ALL" in step for step in steps)
