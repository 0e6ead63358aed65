"""Does the daily job of an IMAP client with imaplib: appends, searches, fetches, deletes."""
import imaplib
import os
import ssl

context = ssl.create_default_context(cafile=os.environ["CA"])


def ok(answer):
    status, data = answer
    assert status == "OK", answer
    return data


def connect():
    return imaplib.IMAP4_SSL("localhost", int(os.environ["IMAP"]), ssl_context=context, timeout=20)


c = connect()
assert "AUTH=PLAIN" in c.capabilities and "SASL-IR" in c.capabilities, c.capabilities
ok(c.login(os.environ["NAME"], os.environ["PASSWORD"]))
message = b"Subject: appended\r\n\r\n" + b"x" * 70000 + b"\r\n"
ok(c.append("INBOX", None, None, message))
assert ok(c.select("INBOX")) == [b"4"]
assert ok(c.search(None, "SUBJECT", "appended")) == [b"4"]
assert ok(c.fetch("4", "(BODY.PEEK[])"))[0][1] == message
ok(c.store("1", "+FLAGS", r"(\Deleted)"))
ok(c.expunge())
ok(c.create("Kept"))
ok(c.copy("1", "Kept"))
ok(c.close())
c.logout()

c = connect()
plain = "\0" + os.environ["NAME"] + "\0" + os.environ["PASSWORD"]
ok(c.authenticate("PLAIN", lambda _: plain.encode()))
assert ok(c.select("INBOX", readonly=True)) == [b"3"]
assert ok(c.select("Kept", readonly=True)) == [b"1"]
c.shutdown()  # without LOGOUT
