"""Does the daily job of a mail program with smtplib: logs in and sends."""
import os
import smtplib
import ssl

context = ssl.create_default_context(cafile=os.environ["CA"])
address = os.environ["ADDRESS"]
with open(os.environ["MESSAGE"], "rb") as f:
    message = f.read()
with smtplib.SMTP_SSL("localhost", int(os.environ["SMTP"]), context=context, timeout=20) as c:
    c.ehlo()
    assert c.has_extn("size") and c.has_extn("8bitmime") and c.has_extn("auth"), c.esmtp_features
    c.login(os.environ["NAME"], os.environ["PASSWORD"])
    c.sendmail(address, [address], message, mail_options=["BODY=8BITMIME"])
    try:
        c.sendmail(address, ["nobody@example.org"], message)
        raise AssertionError("nobody@example.org got mail")
    except smtplib.SMTPRecipientsRefused:
        pass
    c.sendmail(address, [address], message)  # another one in the same session
