"""The configuration: every problem at once, with its path and the nearest known key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dicomnode import config
from dicomnode.errors import ConfigError
from tests.conftest import REPOSITORY

RULE = """
rules:
  - {name: one, when: {Modality: CT}, pipeline: p, send_to: [PACS]}
pipelines: {p: {class: "a.b:C"}}
destinations: {PACS: {ae_title: PACS, host: 127.0.0.1}}
"""


def test_every_problem_is_reported_at_once_with_its_path() -> None:
    text = "node: {ae_titel: X}\nrecieve: {}\nreceive: {port: 99999, timeouts: {idel: 3}}\n"
    with pytest.raises(ConfigError) as caught:
        config.parse(text)
    message = str(caught.value)
    assert "node.ae_titel: unknown key (did you mean 'ae_title'?)" in message
    assert "recieve: unknown key (did you mean 'receive'?)" in message
    assert "receive.port" in message and "99999" in message
    assert "receive.timeouts.idel: unknown key (did you mean 'idle'?)" in message


def test_short_forms_of_conditions() -> None:
    when = "{A: CT, B: [X, Y], C: present, D: absent, E: {matches: '^x', not: 3}, F: {min: 1, max: 2}}"
    parsed = config.parse(RULE.replace("{Modality: CT}", when)).rules[0].when
    assert parsed["A"].equals == ["CT"] and parsed["B"].equals == ["X", "Y"]
    assert parsed["C"].present is True and parsed["D"].present is False
    assert parsed["E"].not_ is not None and parsed["E"].not_.equals == [3]
    assert (parsed["F"].min, parsed["F"].max) == (1, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RULE.replace("pipeline: p", "pipeline: q"), "rules.one.pipeline: 'q' is not under pipelines"),
        (RULE.replace("[PACS]", "[PAC]"), "'PAC' is not under destinations (did you mean 'PACS'?)"),
        (RULE.replace("Modality: CT", "Modality: {matches: '('}"), "not a regular expression"),
        (RULE.replace("Modality: CT", "Modality: {}"), "empty condition"),
        (RULE.replace("ae_title: PACS", "ae_title: 'longer than sixteen'"), "1 to 16"),
        ("sources: [{ae_title: A, addresses: [300.1.1.1]}]", "300.1.1.1"),
        ("- a list", "top level must be keys"),
        ("a: [", "is not YAML"),
        ("receive: {refuse_below_mb: 10, accept_above_mb: 5}", "must not be below"),
    ],
)
def test_a_wrong_value_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r".") as caught:
        config.parse(text)
    assert said in str(caught.value)


def test_the_annotated_example_loads_and_states_every_setting() -> None:
    path = REPOSITORY / "deploy" / "node.yaml"
    loaded = config.load(path)
    assert loaded.rules and loaded.pipelines and loaded.destinations
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section in ("node", "receive", "assemble", "execute", "retention"):
        known = set(type(getattr(loaded, section)).model_fields)
        assert set(written[section]) == known, f"{section}: the example must state every setting"


def commented(section: str) -> str:
    """A section of the example that stands there as a comment, as if it did not."""
    text = (REPOSITORY / "deploy" / "node.yaml").read_text(encoding="utf-8")
    block = text[text.index(f"# {section}:\n") :].split("\n\n")[0]
    return "\n".join(line.removeprefix("# ") for line in block.splitlines())


def test_the_commented_listener_of_the_example_loads_and_states_every_setting() -> None:
    pipeline = "pipelines: {mr_recon: {class: 'pipelines.mr_recon:MRReconstruction'}}\n"
    loaded = config.parse(pipeline + commented("mrd")).mrd
    assert loaded is not None and set(yaml.safe_load(commented("mrd"))["mrd"]) == set(type(loaded).model_fields)
    assert set(loaded.configs) == {"default", "learned"} and loaded.identity.query is not None


def test_the_commented_hooks_of_the_example_load_and_state_every_setting() -> None:
    loaded = config.parse(commented("notify"))
    said = yaml.safe_load(commented("notify"))["notify"]
    assert set(said["triage"]) == set(config.Webhook.model_fields)
    assert set(said["engine"]) | set(said["triage"]) >= set(config.Hl7.model_fields)
    assert [hook.kind for hook in loaded.notify.values()] == ["webhook", "hl7"]


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("{kind: webhook, url: 'http://10.0.0.1/x', secret_file: s}", "must be https"),
        ("{kind: webhook, url: 'ftp://x/', secret_file: s}", "must be https"),
        ("{kind: webhook, url: 'https://x/'}", "secret_file"),
        ("{kind: hl7, host: h, urgency: []}", "urgency"),
        ("{kind: hl7, host: h, urgency: [soon]}", "minutes"),
        ("{kind: hl7, host: h, receiving_facility: 'A|B'}", "receiving_facility"),
        ("{kind: hl7, host: h, prot: 1}", "prot: unknown key"),
        ("{kind: fax}", "fax"),
    ],
)
def test_a_wrong_hook_is_named(hook: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(f"notify: {{one: {hook}}}")
    assert said in str(caught.value) and "notify.one" in str(caught.value)


def test_a_webhook_on_this_machine_may_be_plain() -> None:
    for host in ("127.0.0.1:8000", "localhost", "[::1]"):
        assert config.parse(f"notify: {{one: {{kind: webhook, url: 'http://{host}/x', secret_file: s}}}}").notify


def test_options_change_the_job_digest_and_destinations_do_not() -> None:
    one = config.parse(RULE)
    other = config.parse(RULE.replace("send_to: [PACS]", "send_to: [PACS], options: {a: 1}"))
    elsewhere = config.parse(RULE.replace("host: 127.0.0.1", "host: 127.0.0.2"))
    assert one.job_digest(one.rules[0]) != other.job_digest(other.rules[0])
    assert one.job_digest(one.rules[0]) == elsewhere.job_digest(elsewhere.rules[0])


@given(st.sampled_from(sorted(config.Receive.model_fields)), st.integers(0, 100), st.characters(categories=["Ll"]))
def test_any_misspelt_key_is_reported(key: str, place: int, letter: str) -> None:
    at = place % len(key)
    wrong = key[:at] + letter + key[at:]
    if wrong in config.Receive.model_fields:
        return
    with pytest.raises(ConfigError) as caught:
        config.Config.model_validate({}) and config.parse(yaml.safe_dump({"receive": {wrong: 1}}))
    assert f"receive.{wrong}: unknown key" in str(caught.value)


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        config.load(tmp_path / "no.yaml")
