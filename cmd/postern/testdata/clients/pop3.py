"""Does the daily job of a POP3 client with poplib: lists, retrieves, deletes."""
import os
import poplib
import ssl

context = ssl.create_default_context(cafile=os.environ["CA"])


def connect():
    return poplib.POP3_SSL("localhost", int(os.environ["POP3"]), context=context, timeout=20)


c = connect()
assert "UIDL" in c.capa() and "PLAIN" in c.capa()["SASL"], c.capa()
c.user(os.environ["NAME"])
c.pass_(os.environ["PASSWORD"])
count, octets = c.stat()
_, listing, _ = c.list()
assert count == len(listing) == 3, listing
assert octets == sum(int(line.split()[1]) for line in listing), (octets, listing)
uids = [line.split()[1] for line in c.uidl()[1]]
assert len(set(uids)) == 3, uids
for n in (1, 2, 3):
    _, lines, _ = c.retr(n)
    assert sum(len(line) + 2 for line in lines) == int(c.list(n).split()[2]), n
    head = c.top(n, 2)[1]
    assert lines[: len(head)] == head and len(head) < len(lines), head
    assert b"." in lines and b".." in lines and b".dot" in lines, lines
c.dele(2)
c.rset()
c.dele(1)
c.noop()
c.quit()

c = connect()
c.user(os.environ["NAME"])
c.pass_(os.environ["PASSWORD"])
assert [line.split()[1] for line in c.uidl()[1]] == uids[1:]
c.close()  # without QUIT
