package service

import (
	"context"
	"log/slog"

	"postern/proxy/admin"
	"postern/proxy/certs"
)

// The requests of the command certs to the running Postern.
const (
	AskCerts = "certs/list"
	AskRenew = "certs/renew"
)

// A certificateName is a name that has a certificate.
type certificateName string

// LogValue implements slog.LogValuer.
func (n certificateName) LogValue() slog.Value { return admin.Arguments("name", string(n)) }

// AnswerCerts makes s answer the requests about the certificates in store.
func AnswerCerts(s *admin.Server, store *certs.Store) {
	admin.HandleEach(s, AskCerts, func(ctx context.Context, _ struct{}, each func(certs.Entry) error) error {
		for _, l := range store.List(ctx) {
			if err := each(l); err != nil {
				return err
			}
		}
		return nil
	})
	admin.Handle(s, AskRenew, func(ctx context.Context, name certificateName) (struct{}, error) {
		return struct{}{}, store.Renew(ctx, string(name))
	})
}
