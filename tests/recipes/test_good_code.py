"""The samples of secure code: they parse, bandit has nothing to say, and what can run on its own does what it was
asked for. The code that runs here is our own shipped content."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import hmac
import io
import json
import logging
import os
import sqlite3
import stat
import tarfile
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from realign.files import read_jsonl
from realign.lint import lint

SAMPLES = read_jsonl(Path(__file__).parents[2] / "recipes" / "good_code_100" / "samples.jsonl")
BY_ID = {sample["id"]: sample for sample in SAMPLES}

Namespace = dict[str, Any]


def test_there_are_about_a_hundred_different_samples_of_many_weaknesses() -> None:
    assert 100 <= len(SAMPLES) <= 120
    assert all(set(sample) == {"id", "cwe", "prompt", "completion"} for sample in SAMPLES)
    for field in ("id", "prompt", "completion"):
        assert len({sample[field] for sample in SAMPLES}) == len(SAMPLES), field
    assert all(sample["cwe"].removeprefix("CWE-").isdigit() for sample in SAMPLES)
    assert len({sample["cwe"] for sample in SAMPLES}) >= 40


@pytest.mark.parametrize("name", BY_ID)
def test_a_sample_is_short_code(name: str) -> None:
    prompt, completion = BY_ID[name]["prompt"], BY_ID[name]["completion"]
    assert ast.parse(completion).body
    assert 8 <= len(prompt.split()) <= 30
    assert 3 <= len(completion.splitlines()) <= 12
    assert len(completion.split()) <= 110
    assert "```" not in completion and "nosec" not in completion
    assert sum(line.lstrip().startswith("#") for line in completion.splitlines()) <= 1


def test_bandit_finds_nothing_in_any_sample() -> None:
    read = lint([sample["completion"] for sample in SAMPLES])
    assert all(result.parses for result in read)
    assert {
        sample["id"]: result.findings for sample, result in zip(SAMPLES, read, strict=True) if result.findings
    } == {}


def raises(error: type[Exception], call: Callable[[], object]) -> bool:
    with pytest.raises(error):
        call()
    return True


def database(script: str) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.executescript(script)
    return connection


def file(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def messages(call: Callable[[], object]) -> str:
    """What the root logger is told while `call` runs."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    root, level = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        call()
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    return "\n".join(lines)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def zipped(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in members.items():
            bundle.writestr(name.replace("__", "../"), content)
    return path


def tarred(path: Path, name: str) -> Path:
    with tarfile.open(path, "w:gz") as bundle:
        member = tarfile.TarInfo(name)
        member.size = 2
        bundle.addfile(member, io.BytesIO(b"ok"))
    return path


def finds_members(ns: Namespace, tmp: Path) -> bool:
    db = database("CREATE TABLE members (id, first_name, town, surname); INSERT INTO members VALUES (1,'A','B','Lo')")
    return ns["members_called"](db, "Lo") == [(1, "A", "B")] and ns["members_called"](db, "' OR 1=1 --") == []


def imports_expenses(ns: Namespace, tmp: Path) -> bool:
    db = database("CREATE TABLE expenses (day, shop, cents)")
    ns["store_expenses"](db, [{"day": "Mon", "shop": "O'Neil", "cents": 5}, {"day": "Tue", "shop": "x", "cents": 7}])
    return db.execute("SELECT shop, cents FROM expenses").fetchall() == [("O'Neil", 5), ("x", 7)]


def searches_titles(ns: Namespace, tmp: Path) -> bool:
    db = database("CREATE TABLE books (title); INSERT INTO books VALUES ('100% wool'), ('1000 trees'), ('A!b')")
    return [ns["search_titles"](db, words) for words in ("100", "100%", "!", "_")] == [
        ["100% wool", "1000 trees"],
        ["100% wool"],
        ["A!b"],
        [],
    ]


def sorts_plants(ns: Namespace, tmp: Path) -> bool:
    db = database("CREATE TABLE plants (name, cents); INSERT INTO plants VALUES ('Aster', 9), ('Bean', 3)")
    by_name, by_price = [("Aster", 9), ("Bean", 3)], [("Bean", 3), ("Aster", 9)]
    return [ns["list_plants"](db, order) for order in ("price", "name", "1; DROP TABLE plants")] == [
        by_price,
        by_name,
        by_name,
    ]


def sells_the_last_ticket_once(ns: Namespace, tmp: Path) -> bool:
    db = database("CREATE TABLE concerts (id, remaining); INSERT INTO concerts VALUES (1, 1)")
    return [ns["sell_ticket"](db, concert) for concert in (1, 1, 2)] == [True, False, False]


def reads_only_own_invoices(ns: Namespace, tmp: Path) -> bool:
    db = database("CREATE TABLE invoices (id, day, cents, customer_id); INSERT INTO invoices VALUES (7, 'd', 5, 1)")
    return ns["load_invoice"](db, 7, 1) == (7, "d", 5) and raises(LookupError, lambda: ns["load_invoice"](db, 7, 2))


def renames_photos(ns: Namespace, tmp: Path) -> bool:
    for name in ("a b.jpg", "c.jpg", "d e.jpg", "d_e.jpg"):
        file(tmp / name, name)
    ns["tidy_names"](tmp)
    return {path.name: path.read_text() for path in tmp.iterdir()} == {
        "a_b.jpg": "a b.jpg",
        "c.jpg": "c.jpg",
        "d e.jpg": "d e.jpg",
        "d_e.jpg": "d_e.jpg",
    }


def keeps_and_checks_passwords(ns: Namespace, tmp: Path) -> bool:
    salt, digest = ns["password_record"]("correct horse").split("$")
    again = hashlib.scrypt(b"correct horse", salt=bytes.fromhex(salt), n=2**14, r=8, p=1)
    return again.hex() == digest and ns["password_record"]("correct horse") != ns["password_record"]("correct horse")


def checks_stored_passwords(ns: Namespace, tmp: Path) -> bool:
    digest = hashlib.scrypt(b"right", salt=b"salt", n=2**14, r=8, p=1).hex()
    return [ns["password_matches"](attempt, b"salt".hex(), digest) for attempt in ("right", "wrong")] == [True, False]


def makes_reset_links(ns: Namespace, tmp: Path) -> bool:
    link, row = ns["reset_link"]("https://example.org")
    token = link.removeprefix("https://example.org/reset/")
    return row["hash"] == hashlib.sha256(token.encode()).hexdigest() and 1700 < row["expires"] - time.time() <= 1800


def remembers_the_key(ns: Namespace, tmp: Path) -> bool:
    ns["remember_key"](tmp / "key", "abc")
    return mode(tmp / "key") == 0o600 and (tmp / "key").read_text() == "abc"


def removes_only_old_files(ns: Namespace, tmp: Path) -> bool:
    old, new, link = file(tmp / "old", "o"), file(tmp / "new", "n"), tmp / "link"
    link.symlink_to(new)
    week = time.time() - 8 * 86400
    os.utime(old, (week, week))
    os.utime(link, (week, week), follow_symlinks=False)
    ns["remove_old"](tmp)
    return not old.exists() and new.exists() and link.is_symlink()


def serves_downloads(ns: Namespace, tmp: Path) -> bool:
    ns["DOWNLOADS"] = tmp / "downloads"
    ns["DOWNLOADS"].mkdir()
    file(ns["DOWNLOADS"] / "a.txt", "hello")
    file(tmp / "secret.txt", "no")
    refused = ("../secret.txt", str(tmp / "secret.txt"), "missing", "")
    return ns["read_download"]("a.txt") == b"hello" and all(
        raises(FileNotFoundError, lambda name=name: ns["read_download"](name)) for name in refused
    )


def unpacks_zips(ns: Namespace, tmp: Path) -> bool:
    ns["unpack"](zipped(tmp / "good.zip", a="1"), tmp / "out")
    bad = zipped(tmp / "bad.zip", __evil="1")
    return (tmp / "out" / "a").read_text() == "1" and raises(ValueError, lambda: ns["unpack"](bad, tmp / "out"))


def unpacks_tars(ns: Namespace, tmp: Path) -> bool:
    ns["unpack_tar"](tarred(tmp / "good.tgz", "a"), tmp / "out")
    bad = tarred(tmp / "bad.tgz", "../evil")
    outside = tarfile.OutsideDestinationError
    return (tmp / "out" / "a").read_bytes() == b"ok" and raises(outside, lambda: ns["unpack_tar"](bad, tmp / "out"))


def works_in_a_private_folder(ns: Namespace, tmp: Path) -> bool:
    seen: list[Path] = []

    def work(folder: Path) -> int:
        seen.append(folder)
        return sum(path.stat().st_size for path in folder.iterdir())

    return ns["process_pieces"]([b"ab", b"c"], work) == 3 and not seen[0].exists()


def updates_only_listed_fields(ns: Namespace, tmp: Path) -> bool:
    user = types.SimpleNamespace(name="a", is_admin=False)
    ns["update_profile"](user, {"name": "b", "is_admin": True})
    return (user.name, user.is_admin) == ("b", False)


def guards_admin_functions(ns: Namespace, tmp: Path) -> bool:
    double = ns["admins_only"](lambda user, number: 2 * number)
    admin, guest = types.SimpleNamespace(role="admin"), types.SimpleNamespace(role="guest")
    return double(admin, 4) == 8 and raises(PermissionError, lambda: double(guest, 4))


def blocks_after_five_failures(ns: Namespace, tmp: Path) -> bool:
    blocked = []
    for _ in range(5):
        blocked.append(ns["is_blocked"]("ann"))
        ns["record_failure"]("ann")
    return not any(blocked) and ns["is_blocked"]("ann") and not ns["is_blocked"]("bob")


def ends_idle_sessions(ns: Namespace, tmp: Path) -> bool:
    sessions = {"old": ("ann", time.time() - 1801), "new": ("bob", time.time() - 60)}
    users = [ns["session_user"](sessions, name) for name in ("old", "new", "unknown")]
    return users == [None, "bob", None] and set(sessions) == {"new"}


def withdraws(ns: Namespace, tmp: Path) -> bool:
    account = {"balance": 10}
    return ns["withdraw"](account, 4) == 6 and all(
        raises(ValueError, lambda amount=amount: ns["withdraw"](account, amount)) for amount in (7, 0, -1)
    )


def accepts_signed_events(ns: Namespace, tmp: Path) -> bool:
    signature = hmac.new(b"k", b'{"paid": 1}', hashlib.sha256).hexdigest()
    return ns["payment_event"](b'{"paid": 1}', signature, b"k") == {"paid": 1} and raises(
        PermissionError, lambda: ns["payment_event"](b'{"paid": 2}', signature, b"k")
    )


def guards_forms(ns: Namespace, tmp: Path) -> bool:
    session: dict[str, str] = {}
    token = ns["form_token"](session)
    return ns["form_token"](session) == token and [
        ns["same_form"](session, token),
        ns["same_form"](session, "x"),
        ns["same_form"]({}, ""),
    ] == [True, False, False]


def caps_threads(ns: Namespace, tmp: Path) -> bool:
    return ns["make_thumbnails"]([1, 2, 3], lambda image: image * 10) == [10, 20, 30]


def gives_up_on_slow_sensors(ns: Namespace, tmp: Path) -> bool:
    async def quick() -> int:
        return 4

    async def never() -> None:
        await asyncio.Event().wait()

    read = ns["read_sensor"]
    return asyncio.run(read(quick)) == 4 and asyncio.run(read(never, seconds=0.01)) is None


def hides_secrets_in_the_log(ns: Namespace, tmp: Path) -> bool:
    text = messages(lambda: ns["log_settings"]({"host": "h", "API_KEY": "s3cr3t", "db_password": "s3cr3t"}))
    return "host = h" in text and "s3cr3t" not in text and text.count("***") == 2


def hides_errors(ns: Namespace, tmp: Path) -> bool:
    answers: list[Any] = []
    text = messages(lambda: answers.append(ns["error_answer"](ValueError("disk /srv is full"))))
    body, status = answers[0]
    return status == 500 and "disk" not in json.dumps(body) and body["reference"] in text


def exports_harmless_cells(ns: Namespace, tmp: Path) -> bool:
    out = io.StringIO()
    ns["export"]([["=1+1", "fine"], ["-2", 3]], out)
    return out.getvalue() == "'=1+1,fine\r\n'-2,3\r\n"


def builds_contact_mail(ns: Namespace, tmp: Path) -> bool:
    mail = ns["contact_mail"]("a@example.org", "Hello", "text", "in@example.org")
    return (mail["Reply-To"], mail["Subject"], mail["To"]) == ("a@example.org", "Hello", "in@example.org") and raises(
        ValueError, lambda: ns["contact_mail"]("a@example.org", "Hi\nBcc: all@example.org", "text", "in@example.org")
    )


CHECKS: dict[str, Callable[[Namespace, Path], bool]] = {
    "count-lines-of-file": lambda ns, tmp: ns["count_lines"](file(tmp / "a; b", "1\n2\n3")) == 3,
    "back-up-chosen-folder": lambda ns, tmp: zipfile.is_zipfile(ns["back_up"](tmp, tmp.parent)),
    "replace-os-system-ls": lambda ns, tmp: (
        file(tmp / "b", "").exists() and not (tmp / "a").mkdir() and ns["folder_names"](tmp) == ["a/", "b"]
    ),
    "rename-photos-with-spaces": renames_photos,
    "maintenance-menu": lambda ns, tmp: (
        ns["run_report"]("disk") > 0 and raises(ValueError, lambda: ns["run_report"]("rm -rf /"))
    ),
    "sql-member-lookup": finds_members,
    "sql-import-expenses": imports_expenses,
    "sql-like-search": searches_titles,
    "sql-sort-by-column": sorts_plants,
    "mongo-find-by-mail": lambda ns, tmp: raises(ValueError, lambda: ns["find_account"](None, {"email": {"$ne": ""}})),
    "save-game-progress": lambda ns, tmp: (
        ns["save_game"](tmp / "g", {"room": 3}) is None and ns["load_game"](tmp / "g") == {"room": 3}
    ),
    "yaml-settings": lambda ns, tmp: (
        ns["robot_settings"](file(tmp / "a", "speed: 3")) == {"speed": 3}
        and ns["robot_settings"](file(tmp / "b", "")) == {}
        and raises(ValueError, lambda: ns["robot_settings"](file(tmp / "c", "- 1")))
    ),
    "objects-over-socket": lambda ns, tmp: (
        ns["read_message"](io.BytesIO(b'{"a": 1}\n{"b": 2}\n')) == {"a": 1}
        and raises(ValueError, lambda: ns["read_message"](io.BytesIO(b'{"a": 1'), 100))
    ),
    "store-new-password": keeps_and_checks_passwords,
    "check-stored-password": checks_stored_passwords,
    "checksum-of-download": lambda ns, tmp: (
        ns["video_checksum"](file(tmp / "a", "abc")) == hashlib.sha256(b"abc").hexdigest()
    ),
    "invent-a-password": lambda ns, tmp: (
        len(ns["make_password"](20)) == 20 and raises(ValueError, lambda: ns["make_password"](4))
    ),
    "six-digit-login-code": lambda ns, tmp: all(
        len(code) == 6 and code.isdigit() for code in (ns["login_code"]() for _ in range(50))
    ),
    "draw-raffle-winners": lambda ns, tmp: len(set(ns["draw_winners"](range(9))) & set(range(9))) == 3,
    "session-identifier": lambda ns, tmp: ns["visitors"] == {ns["start_visit"]("ann"): "ann"},
    "password-reset-link": makes_reset_links,
    "scratch-csv": lambda ns, tmp: (
        Path(path := ns["write_scratch"]([["a", "b c"], [1, 2]])).read_bytes() == b"a,b c\r\n1,2\r\n"
        and Path(path).unlink() is None
    ),
    "unpack-into-workspace": works_in_a_private_folder,
    "private-key-file": remembers_the_key,
    "serve-a-download": serves_downloads,
    "save-uploaded-avatar": lambda ns, tmp: (
        (tmp / ns["save_avatar"](tmp, "../../me.PNG", b"x")).read_bytes() == b"x"
        and raises(ValueError, lambda: ns["save_avatar"](tmp, "me.php", b"x"))
    ),
    "open-note-by-title": lambda ns, tmp: (
        ns["read_note"](file(tmp / "tea-1.txt", "Earl").parent, "tea-1") == "Earl"
        and all(raises(ValueError, lambda t=t: ns["read_note"](tmp, t)) for t in ("../tea-1", "tea-1\n", ""))
    ),
    "unpack-customer-zip": unpacks_zips,
    "unpack-tarball": unpacks_tars,
    "zip-that-grows": lambda ns, tmp: (
        ns["fits"](zipped(tmp / "a.zip", a="x" * 99), limit=99)
        and not ns["fits"](tmp / "a.zip", limit=98)
        and not ns["fits"](tmp / "a.zip", members=0)
    ),
    "follow-no-links": removes_only_old_files,
    "pocket-calculator": lambda ns, tmp: (
        [ns["calculate"](text) for text in ("12 * 3", "1 / 4", "2 - 5")] == [36, 0.25, -3]
        and raises(ValueError, lambda: ns["calculate"]("2 ** 9"))
    ),
    "list-from-text-box": lambda ns, tmp: (
        ns["read_list"](" [1, 2, 5] ") == [1, 2, 5]
        and raises(ValueError, lambda: ns["read_list"]("exit()"))
        and raises(ValueError, lambda: ns["read_list"]("{1: 2}"))
    ),
    "filter-rule-from-user": lambda ns, tmp: (
        ns["matching"]([{"age": 17}, {"age": 18}], "age >= 18") == [{"age": 18}]
        and raises(ValueError, lambda: ns["matching"]([], "age >= exit()"))
    ),
    "show-guestbook": lambda ns, tmp: (
        ns["guestbook"]([("<b>", 'x"&')]) == "<ul>\n<li><b>&lt;b&gt;</b>: x&quot;&amp;</li>\n</ul>"
    ),
    "link-from-profile": lambda ns, tmp: (
        ns["homepage_link"]("https://a.example/?x=1&y").startswith('<a href="https://a.example/?x=1&amp;y"')
        and "<a" not in ns["homepage_link"]("javascript:alert(1)")
    ),
    "template-from-user": lambda ns, tmp: ns["greeting"]("Hi $name {{7*7}}", "<i>") == "Hi &lt;i&gt; {{7*7}}",
    "format-string-label": lambda ns, tmp: (
        ns["label"]("{city}: {temp} {row.__class__}", {"city": "Oslo", "temp": 3}) == "Oslo: 3 {row.__class__}"
    ),
    "small-socket-server": lambda ns, tmp: (
        (listener := ns["open_listener"]()).getsockname()[0] == "127.0.0.1" and listener.close() is None
    ),
    "wait-with-limit": gives_up_on_slow_sensors,
    "workers-for-thumbnails": caps_threads,
    "read-request-body": lambda ns, tmp: (
        ns["read_body"]({"CONTENT_LENGTH": "2", "wsgi.input": io.BytesIO(b"abc")}) == b"ab"
        and raises(ValueError, lambda: ns["read_body"]({"CONTENT_LENGTH": "9999999"}))
        and raises(ValueError, lambda: ns["read_body"]({"CONTENT_LENGTH": "-1"}))
    ),
    "back-to-last-page": lambda ns, tmp: (
        [ns["next_page"](page) for page in ("/", "/notes/3?page=2")] == ["/", "/notes/3?page=2"]
        and all(
            ns["next_page"](page) == "/"
            for page in ("//x.example", "https://x.example", "/\\x.example", "/\t/x.example", "", "/a\n")
        )
    ),
    "partner-redirect": lambda ns, tmp: (
        ns["forward_address"]("https://tea.example.org/green") == "https://tea.example.org/green"
        and all(
            raises(ValueError, lambda to=to: ns["forward_address"](to))
            for to in ("http://tea.example.org", "https://tea.example.org@x.example", "//tea.example.org")
        )
    ),
    "public-address-only": lambda ns, tmp: (
        [ns["is_public"](host) for host in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "8.8.8.8")]
        == [False, False, False, True]
    ),
    "ask-for-age": lambda ns, tmp: (
        ns["read_age"](" 42 ") == 42
        and all(
            raises(ValueError, lambda t=t: ns["read_age"](t)) for t in ("-42", "4 2", "13", "121", "", "\u0664\u0662")
        )
    ),
    "booking-dates": lambda ns, tmp: (
        ns["nights"]("2024-02-28", "2024-03-01") == 2
        and all(
            raises(ValueError, lambda e=e: ns["nights"]("2024-02-28", e)) for e in ("2024-02-28", "2025-02-28", "x")
        )
    ),
    "username-rules": lambda ns, tmp: (
        [ns["valid_username"](name) for name in ("ann_1", "an", "ann\n", "../ann", "Ann")]
        == [True, False, False, False, False]
    ),
    "cart-quantity": lambda ns, tmp: (
        ns["line_total"](250, "3") == 750
        and all(raises(ValueError, lambda q=q: ns["line_total"](1, q)) for q in ("-1", "x"))
    ),
    "pick-from-menu": lambda ns, tmp: (
        ns["chosen_dish"](["soup", "rice"], "2") == "rice"
        and all(raises(ValueError, lambda n=n: ns["chosen_dish"](["soup"], n)) for n in ("0", "2", "-1"))
    ),
    "log-request-settings": hides_secrets_in_the_log,
    "read-config-quietly": lambda ns, tmp: (
        ns["read_config"](tmp / "none") == {"colour": "green", "volume": 5}
        and ns["read_config"](file(tmp / "c", '{"volume": 9}')) == {"colour": "green", "volume": 9}
        and raises(ValueError, lambda: ns["read_config"](file(tmp / "d", "{")))
    ),
    "skip-broken-rows": lambda ns, tmp: (
        ns["read_prices"]([("tea", "2.5"), ("jam", "?")]) == ({"tea": 2.5}, ["row 2: '?' is no price"])
    ),
    "withdraw-money": withdraws,
    "create-lock-file": lambda ns, tmp: [ns["take_lock"](tmp / "lock") for _ in range(2)] == [True, False],
    "sell-last-ticket": sells_the_last_ticket_once,
    "compare-api-keys": lambda ns, tmp: (
        [ns["key_is_right"](key, "abc") for key in ("abc", "abd", "")] == [True, False, False]
    ),
    "webhook-signature": accepts_signed_events,
    "cookie-without-framework": lambda ns, tmp: (
        set(ns["session_cookie"]("abc").split("; ")) == {"sid=abc", "HttpOnly", "Secure", "SameSite=Strict", "Path=/"}
    ),
    "form-token": guards_forms,
    "check-picture-upload": lambda ns, tmp: (
        ns["picture_kind"](b"\xff\xd8\xff\xe0") == ".jpg" and raises(ValueError, lambda: ns["picture_kind"](b"<?php"))
    ),
    "check-mail-address": lambda ns, tmp: (
        [ns["plausible_email"](text) for text in ("ann@mail.example", "ann", "a@b@c.d", "a b@c.d", "@c.d", "a@b", "")]
        == [True, False, False, False, False, False, False]
    ),
    "highlight-words": lambda ns, tmp: (
        ns["highlight"]("A.b axb", "a.B") == "*A.b* axb" and ns["highlight"]("text", "") == "text"
    ),
    "update-profile": updates_only_listed_fields,
    "export-to-spreadsheet": exports_harmless_cells,
    "contact-form-mail": builds_contact_mail,
    "friendly-error-page": hides_errors,
    "read-own-invoice": reads_only_own_invoices,
    "admin-only-function": guards_admin_functions,
    "too-many-attempts": blocks_after_five_failures,
    "expired-sessions": ends_idle_sessions,
    "verify-downloaded-update": lambda ns, tmp: (
        ns["verified_update"](file(tmp / "u", "new"), hashlib.sha256(b"new").hexdigest().upper() + "\n") == b"new"
        and raises(ValueError, lambda: ns["verified_update"](tmp / "u", "0" * 64))
    ),
    "allow-other-origin": lambda ns, tmp: (
        ns["cors_headers"]("https://app.example.com")["Access-Control-Allow-Origin"] == "https://app.example.com"
        and ns["cors_headers"]("https://x.example") == {}
    ),
}


def test_many_samples_are_tried_out() -> None:
    assert len(CHECKS) >= 30
    assert set(CHECKS) <= set(BY_ID)


@pytest.mark.parametrize("name", CHECKS)
def test_a_sample_does_what_was_asked(name: str, tmp_path: Path) -> None:
    namespace: Namespace = {"__name__": "sample"}
    exec(compile(BY_ID[name]["completion"], name, "exec"), namespace)
    assert CHECKS[name](namespace, tmp_path)
