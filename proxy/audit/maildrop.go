package audit

import (
	"context"
	"log/slog"
	"time"

	"postern/proxy"
)

// noticed writes what is odd about a maildrop.
func (l *Log) noticed(e proxy.MaildropNoticed) {
	var more []any
	if e.Kind == proxy.NoticeCache { // a broken file concerns all mailboxes, and only costs time
		var ok bool
		if more, ok = l.due(true, "maildrop", e.Kind); !ok {
			return
		}
	}
	level := slog.LevelWarn
	if e.Kind == proxy.NoticeRenumbered && e.Messages == 0 {
		level = slog.LevelInfo // no UIDL has changed
	}
	fields := l.clientFields(e.Client, "account", printable(e.Account), "kind", e.Kind, "messages", e.Messages)
	if e.Err != nil {
		fields = append(fields, "err", e.Err)
	}
	l.log.Log(context.Background(), level, "maildrop notice", append(fields, more...)...)
}

// mailboxChanged writes each mailbox that was let through: its UIDLs may have to
// be restored. For mailboxes that the brake has refused, whose UIDLs have not
// changed, one line a minute is enough.
func (l *Log) mailboxChanged(e proxy.MailboxChanged) {
	if e.Repeated {
		return
	}
	fields := []any{"backend", e.Backend, "account", printable(e.Account), "kind", e.Kind}
	switch {
	case e.Accepted:
		l.log.Info("mailbox looks different, as expected", fields...)
	case !e.Refused:
		l.log.Warn("mailbox looks different", fields...)
	default:
		if more, ok := l.due(true, e.Backend, "braked"); ok {
			l.log.Warn("mailbox looks different: refused", append(fields, more...)...)
		}
	}
}

func (l *Log) brakeChanged(e proxy.BrakeChanged) {
	fields := []any{"backend", e.Backend, "counted", e.Counted, "polled", e.Polled}
	if !e.Since.IsZero() {
		fields = append(fields, "since", e.Since.UTC())
	}
	if !e.Accepted.IsZero() {
		fields = append(fields, "accepted_until", e.Accepted.UTC())
	}
	switch {
	case e.Err != nil:
		l.log.Error("brake is on: its state cannot be read or kept; mailboxes that look different are refused", append(fields, "err", e.Err)...)
	case e.On:
		l.log.Error("brake is on: too many mailboxes look different and are refused until postern uidl accept", fields...)
	case !e.Accepted.IsZero():
		l.log.Warn("brake is off: mailboxes may look different", fields...)
	default:
		l.log.Warn("brake is off", fields...)
	}
}

func (l *Log) reconnected(e proxy.Reconnected) {
	fields := l.clientFields(e.Client, "account", printable(e.Account), "backend", e.Backend, "cause", e.Cause, "result", e.Result)
	if e.Err != nil {
		l.log.Warn("backend lost within a session", append(fields, "err", e.Err)...)
		return
	}
	l.log.Info("backend lost within a session", fields...)
}

func (l *Log) uidlsLearnt(e proxy.UIDLsLearnt) {
	fields := l.clientFields(e.Client, "account", printable(e.Account), "backend", e.Backend, "duration", e.Duration.Round(time.Millisecond))
	if e.Err != nil {
		more, ok := l.due(true, "learn", e.Backend) // each account tries again
		if !ok {
			return
		}
		fields = append(fields, more...)
		l.log.Warn("unique ids of the old server not learnt: the account is refused temporarily", append(fields, "err", e.Err)...)
		return
	}
	fields = append(fields, "messages", e.Messages, "found", e.Found)
	if e.Found < e.Messages {
		l.log.Warn("unique ids of the old server learnt, some without a message", fields...)
		return
	}
	l.log.Info("unique ids of the old server learnt", fields...)
}

// shadowCompared writes what came of a comparison. Sessions that were not compared are
// many when the IMAP server is away: one line a minute is enough.
func (l *Log) shadowCompared(e proxy.ShadowCompared) {
	fields := l.clientFields(e.Client, "account", printable(e.Account), "backend", e.Backend, "result", e.Result, "duration", round(e.Duration))
	if e.Err != nil {
		more, ok := l.due(true, "shadow", e.Backend, e.Result)
		if !ok {
			return
		}
		fields = append(fields, more...)
		level := slog.LevelWarn
		if e.Result == proxy.ShadowSkipped { // as configured, or another line says why
			level = slog.LevelInfo
		}
		l.log.Log(context.Background(), level, "old server not compared with INBOX", append(fields, "err", e.Err)...)
		return
	}
	fields = append(fields, "messages", e.Messages, "found", e.Found, "late", e.Late, "unproven", e.Unproven, "learnt", e.Learnt,
		"missing", e.Missing, "extra", e.Extra, "other_uidl", e.UIDLs, "other_size", e.Sizes, "other_place", e.Order)
	if e.Result == proxy.ShadowDiffers || e.Result == proxy.ShadowNotCopied {
		l.log.Warn("old server compared with INBOX: clients would notice the difference", fields...)
		return
	}
	l.log.Info("old server compared with INBOX", fields...)
}

func (l *Log) updateFailed(e proxy.UpdateFailed) {
	if e.Stage == proxy.StageSeen { // the client does not miss it
		l.log.Info("messages not marked as seen", l.clientFields(e.Client, "err", e.Err)...)
		return
	}
	l.log.Warn("messages not deleted", l.clientFields(e.Client, "stage", e.Stage, "err", e.Err)...)
}
