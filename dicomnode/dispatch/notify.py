"""Notification: one thread per hook tells what the notification rows ask for.

What is certain: a message is tried until somebody answered, always under the same key, so that a receiver that got it
twice (the node died between the answer and its record) can tell; what takes a message back never overtakes it. It is
never the only channel: the result goes to the archive all the same.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from dicomnode import faults
from dicomnode.config import Config, Hook, Webhook
from dicomnode.dicom import digest
from dicomnode.dispatch.notify_message import Identity, Message, read_identity
from dicomnode.errors import ConfigError, IdentityUnreadable, NotificationRefused, PeerUnreachable
from dicomnode.rounds import Rounds, together
from dicomnode.store import instances, notifications, schema
from dicomnode.store.db import Database
from dicomnode.store.notifications import Kind, Notification

logger = logging.getLogger(__name__)

#: Pace at which a hook's rows are looked at when nothing wakes it [s].
_POLL_S: Final = 2.0
#: A stop waits this much longer than the hook's own timeout [s].
_GRACE_S: Final = 5.0


class Sender(Protocol):
    """The language of one kind of hook."""

    def send(self, message: Message) -> None:
        """Send one message; returns when it was taken."""

    def check(self) -> None:
        """Raise `ConfigError` if something it needs to send is not there."""

    def close(self) -> None:
        """Let go of connections."""


def _now() -> datetime:
    return datetime.now(UTC)


class Notifier:
    """The service: a lane for each hook."""

    def __init__(self, config: Config, database: Database, clock: Callable[[], datetime] = _now) -> None:
        self.config, self.database = config, database
        self.lanes = [Lane(name, hook, config, database, clock) for name, hook in config.notify.items()]

    def start(self) -> None:
        """Begin to tell what is pending."""
        with self.database.read() as connection:
            waiting = notifications.unsent(connection)
        for name in sorted(set(waiting) - set(self.config.notify)):
            logger.error(
                "Notifications wait for a hook that the configuration does not know",
                extra={"action": "hook_unknown", "hook": name, "messages": waiting[name]},
            )
        for lane in self.lanes:
            lane.rounds.start()

    def wake(self) -> None:
        """Look for new messages now. Does not shorten the pause of a hook that is down."""
        for lane in self.lanes:
            lane.rounds.wake()

    def stop(self) -> None:
        """End every thread after the message it is sending; what is left stays pending."""
        for lane in self.lanes:
            lane.rounds.stop()
        together(*(lane.join for lane in self.lanes))


class Lane:
    """Everything about one hook."""

    def __init__(
        self, name: str, hook: Hook, config: Config, database: Database, clock: Callable[[], datetime]
    ) -> None:
        self.name, self.hook, self.database, self.clock = name, hook, database, clock
        self._data, self._charset = config.node.data, config.node.default_charset
        self._sender = sender(hook, clock)
        self.rounds = Rounds(f"notify-{name}", self.step, self._unforeseen, recover=lambda: _POLL_S)
        self._failures = 0
        self._resume_at: datetime | None = None

    def join(self) -> None:
        """Wait for the thread: no longer than a message may take."""
        self.rounds.join(self.hook.timeout + _GRACE_S)
        self._sender.close()

    # -- one round

    def step(self) -> float:
        """Tell what is due, one message. Return how long there is nothing to do [s]."""
        now = self.clock()
        if self._resume_at is not None and now < self._resume_at:
            return min((self._resume_at - now).total_seconds(), _POLL_S)
        self._resume_at = None
        lease = timedelta(seconds=self.hook.timeout + _GRACE_S)
        with self.database.write() as connection:
            one = notifications.claim(connection, self.name, now, lease)
            later = None if one else notifications.next_due(connection, self.name)
        if one is None:
            wait = _POLL_S if later is None else (later - now).total_seconds()
            return min(max(wait, 0.01), _POLL_S)
        if one.kind is Kind.POSITIVE and now - one.created_at > timedelta(seconds=self.hook.give_up_after_s):
            self._die(one, "nobody took it in time, and it is old news")
            return 0.0
        try:
            self._tell(one)
        except OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 - one bad message must not hold up the next for ever
            self._unforeseen(error)
            self._refused(one, NotificationRefused(f"unforeseen: {type(error).__name__}"))
        return 0.0

    def _tell(self, one: Notification) -> None:
        """Send one message, and write down what became of it."""
        try:
            identity = read_identity(self._files(one), self._charset)
        except IdentityUnreadable as error:
            self._suppress(one, str(error))
            return
        except OSError as error:  # a disk that fails for a moment must not cost a finding its message
            self._refused(one, NotificationRefused(f"no file can be read now: {type(error).__name__}"))
            return
        why = identity.unaddressed or self._not_one_study(one, identity)
        if why:
            self._suppress(one, why)
            return
        try:
            self._sender.send(Message(notification=one, identity=identity))
        except (PeerUnreachable, ConfigError) as error:
            self._lost(one, error)
        except NotificationRefused as error:
            self._refused(one, error)
        else:
            faults.reached("mid-notification")
            self._sent(one)

    def _files(self, one: Notification) -> list[Path]:
        """Where the identity stands: the first input, else what the job made (it repeats the identity exactly).

        What is taken back is taken back from whom it was told of: the same images may have come under another identity
        since, so that what the job made comes first then.
        """
        job, instance, output = schema.job, schema.instance, schema.output
        with self.database.read() as connection:
            inputs = connection.scalar(select(job.c.inputs).where(job.c.id == one.job_id)) or []
            query = select(instance.c.path).where(instance.c.sop_instance_uid.in_(inputs[:1]))
            first = [self._data / "spool" / path for path in connection.scalars(query)]
            made = select(output.c.path).where(output.c.job_id == one.job_id).order_by(output.c.id).limit(1)
            results = [self._data / "results" / path for path in connection.scalars(made)]
            return [*results, *first] if one.kind is Kind.RETRACTION else [*first, *results]

    def _not_one_study(self, one: Notification, identity: Identity) -> str:
        """Why the order or the patient does not name this study alone."""
        order = digest("order", identity.accession_issuer, identity.accession_number)
        with self.database.write() as connection:
            # What takes something back goes to whom that was told of, all the more then.
            if one.kind is not Kind.RETRACTION and instances.patients_of_study(connection, one.study_uid) > 1:
                return "the study carries several patient identities"
            if not one.order_key and notifications.order_elsewhere(connection, one, order):
                return "its AccessionNumber belongs to another study too"
        return ""

    # -- outcomes

    def _sent(self, one: Notification) -> None:
        now = self.clock()
        with self.database.write() as connection:
            notifications.sent(connection, one, now)
            came = notifications.door(connection, one)
        self._failures = 0
        seconds = None if came is None else round((now - came).total_seconds(), 3)
        self._log("info", "Notification sent", "notification_sent", one, door_to_notification_s=seconds)

    def _lost(self, one: Notification, error: Exception) -> None:
        """Nobody answered: everything for this hook waits, since what comes next would not be answered either."""
        self._failures += 1
        pause = self._backoff(self._failures)
        self._resume_at = self.clock() + pause
        with self.database.write() as connection:
            notifications.postpone(connection, one, self._resume_at, str(error), refused=False)
        extra = {"error": str(error), "pause_s": round(pause.total_seconds(), 1)}
        self._log("warning", "Notification not answered; trying again later", "notification_postponed", one, **extra)

    def _refused(self, one: Notification, error: NotificationRefused) -> None:
        self._failures = 0
        if one.refusals + 1 >= self.hook.max_attempts:
            self._die(one, str(error))
            return
        pause = self._backoff(one.refusals + 1)
        with self.database.write() as connection:
            notifications.postpone(connection, one, self.clock() + pause, str(error), refused=True)
        extra = {"error": str(error), "pause_s": round(pause.total_seconds(), 1)}
        self._log("warning", "Notification refused; trying again later", "notification_postponed", one, **extra)

    def _die(self, one: Notification, why: str) -> None:
        with self.database.write() as connection:
            notifications.die(connection, one, self.clock(), why)
        self._log("error", "Notification set aside", "notification_dead", one, error=why)

    def _suppress(self, one: Notification, why: str) -> None:
        with self.database.write() as connection:
            notifications.suppress(connection, one, self.clock(), why)
        self._log("warning", "Notification not sent", "notification_suppressed", one, reason=why)

    def _unforeseen(self, error: Exception) -> None:
        """Log where, and what kind of error: its text may quote what the message says of the patient."""
        where = "".join(traceback.format_tb(error.__traceback__))
        extra = {"action": "notify_error", "hook": self.name, "error": type(error).__name__, "where": where}
        logger.error("Notifying failed", extra=extra)

    def _backoff(self, failures: int) -> timedelta:
        return timedelta(seconds=min(self.hook.backoff_s * 2.0 ** min(failures - 1, 32), self.hook.max_backoff_s))

    def _log(self, level: str, text: str, action: str, one: Notification, **extra: object) -> None:
        told: Mapping[str, object] = {
            "action": action, "hook": self.name, "kind": one.kind.value, "job_id": one.job_id,
            "study_uid": one.study_uid, "series_uid": one.series_uid, "key": one.key, "attempt": one.attempt, **extra,
        }  # fmt: skip
        logger.log(logging.getLevelNamesMapping()[level.upper()], text, extra=told)


def sender(hook: Hook, clock: Callable[[], datetime]) -> Sender:
    """The sender for a hook. Loads the library of its kind only.

    Raises
    ------
    ConfigError
        Its certificates cannot be read.
    """
    try:
        if isinstance(hook, Webhook):
            from dicomnode.dispatch.notify_webhook import WebhookSender

            return WebhookSender(hook, lambda: clock().timestamp())
        from dicomnode.dispatch.notify_hl7 import Hl7Sender

        return Hl7Sender(hook)
    except OSError as error:
        raise ConfigError(f"notify: cannot read ca_file {hook.ca_file}: {error.strerror or error}") from error
