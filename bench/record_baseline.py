"""What the record is compared with: the PyPI package `eventsourcing` on SQLite, saying the same."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event


class Account(Aggregate):
    """Their way of saying the same."""

    @event("Opened")
    def __init__(self, name: str) -> None:
        self.name, self.balance = name, 0
        self.last = ("", "", 0)

    @event("Moved")
    def move(self, amount: int, request: str, payer: str, expires: int) -> None:
        self.balance += amount
        self.last = (request, payer, expires)


class Accounts(Application):
    snapshotting_intervals: ClassVar[dict[Any, int]] = {}


def open_theirs(path: Path) -> Accounts:
    return Accounts(
        env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)},
    )


def append_theirs_concurrently(path: Path, count: int, callers: int) -> int:
    """As many threads as callers, each saving one event at a time to an account of its own."""
    application = open_theirs(path)
    accounts = [Account(f"a{number}") for number in range(callers)]
    application.save(*accounts)

    def caller(account: Account) -> None:
        for number in range(count // callers):
            account.move(1_000_000, f"req-{number}", account.name, 1_790_000_000_000)
            application.save(account)

    started = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(caller, accounts))
    elapsed = time.perf_counter() - started
    application.close()
    return round(count / elapsed)


def append_theirs(path: Path, count: int, account_count: int, batch: int = 100) -> int:
    """Batches of 100 events in one save: their fastest durable way short of one huge transaction."""
    application = open_theirs(path)
    accounts = [Account(f"a{number}") for number in range(account_count)]
    application.save(*accounts)
    started = time.perf_counter()
    for first in range(0, count, batch):
        account = accounts[first // batch % account_count]
        for number in range(first, first + batch):
            account.move(1_000_000, f"req-{number}", account.name, 1_790_000_000_000)
        application.save(account)
    elapsed = time.perf_counter() - started
    application.close()
    return round(count / elapsed)


def replay_theirs(path: Path) -> int:
    """Their notification log, decoded by their mapper: faster than their repository."""
    application = open_theirs(path)
    balances: dict[str, int] = {}
    started = time.process_time()
    first, count = 1, 0
    while True:
        notifications = application.recorder.select_notifications(start=first, limit=1000)
        if not notifications:
            break
        for notification in notifications:
            domain_event = application.mapper.to_domain_event(notification)
            amount = getattr(domain_event, "amount", 0)
            key = str(domain_event.originator_id)
            balances[key] = balances.get(key, 0) + amount
            count += 1
        first = notifications[-1].id + 1
    elapsed = time.process_time() - started
    application.close()
    return round(count / elapsed)
