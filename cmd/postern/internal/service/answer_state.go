package service

import (
	"bytes"
	"context"

	"postern/cmd/postern/internal/stored"
	"postern/proxy/admin"
)

// answerPredecessor makes c answer the requests of the predecessor's sessions.
func (s *Service) answerPredecessor(c *admin.Server) {
	admin.Handle(c, stored.AskGet, func(ctx context.Context, in stored.Entry) ([]byte, error) {
		b, err := s.Storage.Bucket(in.Bucket)
		if err != nil {
			return nil, err
		}
		return b.Get(ctx, in.Key)
	})
	admin.Handle(c, stored.AskScan, func(ctx context.Context, in stored.Entry) (entries []stored.Entry, err error) {
		b, err := s.Storage.Bucket(in.Bucket)
		if err != nil {
			return nil, err
		}
		err = b.Scan(ctx, in.Key, func(key string, value []byte) error {
			entries = append(entries, stored.Entry{Key: key, Old: bytes.Clone(value)})
			return nil
		})
		return entries, err
	})
	admin.Handle(c, stored.AskSwap, s.Storage.Swap)
}
