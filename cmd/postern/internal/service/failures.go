package service

import (
	"postern/cmd/postern/internal/logs"
	"postern/configs"
)

// setFailures makes the audit log write wrong passwords to a file, too.
func (s *Service) setFailures(cfg *configs.Config) error {
	if cfg.Log.Fail2ban == "" {
		return nil
	}
	l, err := logs.OpenFailures(cfg.Log.Fail2ban)
	if err != nil {
		return configs.Errors{cfg.Errorf("log.fail2ban", "%v", err)}
	}
	s.audit.Failures = l
	return nil
}
