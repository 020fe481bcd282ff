"""The section ``mrd`` of the configuration: what is wrong is said at once."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from dicomnode.config import Config, parse
from dicomnode.errors import ConfigError
from tests.conftest import REPOSITORY


def parsed(**mrd: Any) -> Config:
    section = {"configs": {"default": {"pipeline": "recon"}}, **mrd}
    return parse(yaml.safe_dump({"pipelines": {"recon": {"class": "tests.mrd_toys:Fourier"}}, "mrd": section}))


def test_there_is_no_listener_unless_asked_for() -> None:
    assert parse("{}").mrd is None


def test_the_defaults_let_in_this_machine_alone() -> None:
    mrd = parsed().mrd
    assert mrd is not None and mrd.address == "127.0.0.1" and mrd.port == 9002 and mrd.default is None
    assert [str(network) for network in mrd.networks] == ["127.0.0.0/8", "::1/128"]


def test_the_container_shows_both_default_ports() -> None:
    lines = (REPOSITORY / "deploy" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    shown = [line.split()[1:] for line in lines if line.startswith("EXPOSE")]
    assert shown == [[str(parse("{}").receive.port), str(parsed().mrd.port)]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("mrd", "said"),
    [
        ({"address": "0.0.0.0"}, "list who may connect"),
        ({"allow": ["10.0.0.300"]}, "mrd.allow"),
        ({"configs": {"default": {"pipeline": "recn"}}}, "did you mean 'recon'"),
        ({"configs": {}}, "mrd.configs"),
        ({"configs": {"../x": {"pipeline": "recon"}}}, "mrd.configs"),
        ({"configs": {"a b": {"pipeline": "recon"}}}, "mrd.configs"),
        ({"default": "learned"}, "is not under configs"),
        ({"dedline_s": 3}, "did you mean 'deadline_s'"),
        ({"max_message_mb": 100, "max_session_mb": 10}, "must not be above"),
        ({"identity": {"header": "guess"}}, "mrd.identity.header"),
        ({"watch": [{"folder": "/a"}, {"folder": "/a"}]}, "appears twice"),
        ({"timeouts": {"idle": 0}}, "mrd.timeouts.idle"),
    ],
)
def test_what_is_wrong_is_named(mrd: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parsed(**mrd)


def test_beyond_this_machine_with_a_list_is_fine() -> None:
    mrd = parsed(address="10.1.1.1", allow=["10.1.30.0/24"]).mrd
    assert mrd is not None and len(mrd.networks) == 1


def test_the_annotated_example_can_be_switched_on() -> None:
    text = (REPOSITORY / "deploy" / "node.yaml").read_text(encoding="utf-8")
    start = text.index("# mrd:")
    section = "\n".join(line.removeprefix("# ") for line in text[start:].splitlines())
    example = yaml.safe_load(section)
    config = parse(
        yaml.safe_dump({"pipelines": {"mr_recon": {"class": "pipelines.mr_recon:MRReconstruction"}}, **example})
    )
    assert config.mrd is not None and set(config.mrd.configs) == {"default", "learned"}
    assert set(example["mrd"]) == set(type(config.mrd).model_fields), "every setting stands in the example"
