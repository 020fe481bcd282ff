"""Tell a webhook: JSON by POST, signed as standardwebhooks.com has it, so that receivers verify it with its libraries.

``webhook-id`` is the idempotency key: the same for every try of a message.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

import urllib3

from dicomnode import __version__
from dicomnode.config import Webhook
from dicomnode.dispatch.notify_message import RESEARCH, Message
from dicomnode.errors import ConfigError, NotificationRefused, PeerUnreachable

_PREFIX: Final = "whsec_"


class WebhookSender:
    """Sends messages to one webhook.

    Parameters
    ----------
    seconds
        Time now, in seconds since 1970: signed with the message, so that a receiver can refuse a replayed one.
    """

    def __init__(self, hook: Webhook, seconds: Callable[[], float]) -> None:
        self._hook, self._seconds = hook, seconds
        context = ssl.create_default_context(cafile=hook.ca_file)
        self._pool = urllib3.PoolManager(num_pools=1, ssl_context=context, retries=False)

    def send(self, message: Message) -> None:
        """POST one message; returns when it was taken.

        Raises
        ------
        PeerUnreachable
            No answer. The receiver may have it all the same.
        NotificationRefused
            An answer that is not 2xx.
        """
        body = render(message)
        timestamp = str(int(self._seconds()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"dicomnode/{__version__}",
            "Idempotency-Key": message.notification.key,
            "webhook-id": message.notification.key,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(self._secret(), message.notification.key, timestamp, body),
        }
        try:
            response = self._pool.request(
                "POST", self._hook.url, body=body, headers=headers, redirect=False, preload_content=False,
                timeout=urllib3.Timeout(total=self._hook.timeout),
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise PeerUnreachable(f"no answer from the webhook: {type(error).__name__}") from None
        status = response.status
        response.close()  # what it says beyond its status is not read: it may repeat the patient's identity
        if not 200 <= status < 300:
            raise NotificationRefused(f"the webhook answered {status}")

    def check(self) -> None:
        """Raise `ConfigError` without a secret."""
        self._secret()

    def close(self) -> None:
        """Close kept connections."""
        self._pool.clear()

    def _secret(self) -> bytes:
        """Read at every message, so that a secret can be changed without a restart."""
        try:
            text = self._hook.secret_file.read_text(encoding="utf-8").strip()
            secret = (
                base64.b64decode(text[len(_PREFIX) :], validate=True) if text.startswith(_PREFIX) else text.encode()
            )
        except (OSError, UnicodeDecodeError, binascii.Error) as error:
            raise ConfigError(
                f"notify: cannot read secret_file {self._hook.secret_file}: {type(error).__name__}"
            ) from None
        if not secret:
            raise ConfigError(f"notify: secret_file {self._hook.secret_file} is empty")
        return secret


def sign(secret: bytes, key: str, timestamp: str, body: bytes) -> str:
    """Signature of a message: HMAC-SHA256 over ``key.timestamp.body``."""
    signed = b".".join((key.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def render(message: Message) -> bytes:
    """The body: the same bytes for every try."""
    one, who = message.notification, message.identity
    body = {
        "type": f"dicomnode.finding.{one.kind}",
        "id": one.key,
        "replaces": one.content["replaces"] or None,
        "created_at": one.created_at.isoformat(timespec="seconds"),
        "research_use_only": True,
        "notice": RESEARCH,
        "algorithm": {"name": one.algorithm, "version": one.version},
        "patient": {
            "id": who.patient_id, "issuer": who.issuer, "name": who.patient_name, "birth_date": who.birth_date,
            "sex": who.sex,
        },
        "order": {
            "accession_number": who.accession_number, "issuer": who.accession_issuer,
            "placer_order_number": who.placer_order, "filler_order_number": who.filler_order,
        },
        "study_instance_uid": one.study_uid,
        # A job of a whole study is filed under the study's UID and belongs to no one series.
        "series_instance_uid": one.series_uid if one.series_uid != one.study_uid else None,
        "reason": one.content.get("reason"),
        "findings": [_finding(finding) for finding in one.content["findings"]],
        "retracted": [_finding(finding) for finding in one.content["retracted"]],
    }  # fmt: skip
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _finding(finding: Mapping[str, Any]) -> dict[str, Any]:
    value, scheme, meaning = finding["code"]
    return {
        "code": {"value": value, "scheme": scheme, "meaning": meaning},
        "presence": finding["presence"],
        "urgency": finding["urgency"],
        "score": finding["probability"],  # a network's output; a probability only where the report says so
    }
