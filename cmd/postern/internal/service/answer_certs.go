package service

import (
	"context"

	"postern/proxy/admin"
	"postern/proxy/certs"
)

// The requests of the command certs to the running Postern.
const (
	AskCerts = "certs/list"
	AskRenew = "certs/renew"
)

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
	admin.Handle(s, AskRenew, func(ctx context.Context, name string) (struct{}, error) {
		return struct{}{}, store.Renew(ctx, name)
	})
}
