package metrics

import (
	"strings"
	"testing"
	"time"
)

// Criterion: Metrics show of each provider of tokens whether it gives them and when its certificate or secret ends, of device passwords how many do not work, and of slow hashes how many logins wait; nothing is shown of what is not known.
func TestProvidersAndPasswordsAreShown(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	c := config()
	c.Tokens = func() []Provider {
		return []Provider{
			{Name: "contoso", Known: true, Up: true, Tokens: 3, Last: at, NotAfter: at.Add(time.Hour)},
			{Name: "school", Known: true, Misconfigured: true},
			{Name: "new"},
		}
	}
	c.Passwords = func() Passwords {
		return Passwords{Devices: map[string]int{"ok": 12, "damaged": 1}, Accounts: 7, Hashes: true, Running: 2, Waiting: 40, Memory: 1 << 20, Limit: 1 << 28}
	}
	c.Stale = func() map[string]bool {
		return map[string]bool{"backends.m365.names_file": true, "passwords.file": false}
	}
	all := scrape(t, New(c))
	want := map[string]string{
		`postern_provider_up{provider="contoso"}`:                                     "1",
		`postern_provider_up{provider="school"}`:                                      "0",
		`postern_provider_misconfigured{provider="contoso"}`:                          "0",
		`postern_provider_misconfigured{provider="school"}`:                           "1",
		`postern_provider_tokens{provider="contoso"}`:                                 "3",
		`postern_provider_tokens{provider="school"}`:                                  "0",
		`postern_provider_tokens{provider="new"}`:                                     "0",
		`postern_provider_last_token_timestamp_seconds{provider="contoso"}`:           "1.8e+09",
		`postern_provider_credential_not_after_timestamp_seconds{provider="contoso"}`: "1.8000036e+09",
		`postern_password_devices{state="ok"}`:                                        "12",
		`postern_password_devices{state="damaged"}`:                                   "1",
		`postern_password_device_accounts`:                                            "7",
		`postern_password_hashes_running`:                                             "2",
		`postern_password_hashes_waiting`:                                             "40",
		`postern_password_hash_memory_bytes`:                                          "1.048576e+06",
		`postern_password_hash_memory_limit_bytes`:                                    "2.68435456e+08",
		`postern_file_stale{key="backends.m365.names_file"}`:                          "1",
		`postern_file_stale{key="passwords.file"}`:                                    "0",
	}
	for series, value := range want {
		if all[series] != value {
			t.Errorf("%s is %q, want %s", series, all[series], value)
		}
	}
	for series := range all {
		for _, prefix := range []string{"postern_provider_", "postern_password_devices", "postern_password_device_", "postern_password_hash", "postern_file_stale"} {
			if _, wanted := want[series]; strings.HasPrefix(series, prefix) && !wanted {
				t.Errorf("%s is shown, and is not known", series)
			}
		}
	}

	c.Passwords = func() Passwords { return Passwords{} }
	for series := range scrape(t, New(c)) {
		if strings.HasPrefix(series, "postern_password_devices") || strings.HasPrefix(series, "postern_password_hash") {
			t.Errorf("%s is shown without device passwords that were counted, and without a file", series)
		}
	}
}
