package state

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5" // PostgreSQL's protocol, its types, and SCRAM
	"github.com/jackc/pgx/v5/pgconn"
)

// The limits of a Postgres.
const (
	postgresConns   = 16 // at a time
	postgresTable   = "postern_record"
	postgresHost    = time.Second // to connect to one host
	maxPasswordFile = 4 << 10
)

// A PostgresConfig says where a record is.
type PostgresConfig struct {
	URL          string               // postgres://USER@HOST[,HOST]/DATABASE, without a password
	PasswordFile string               // read for each connection; "": the server asks for none
	CA           string               // a file of certificates; "": those of the system
	Accept       func(Identity) error // returns an error if it is not the right record; nil: Identity.Check
}

// A Postgres is a Store in a table of a PostgreSQL. It reads and writes at the primary alone.
type Postgres struct {
	config PostgresConfig
	hosts  []*pgx.ConnConfig // one for each host
	slots  chan struct{}     // a place for each connection
	any    bool              // any record is used

	mu        sync.Mutex
	idle      []postgresConn
	age       int // number of probes; connections of before are closed
	preferred int // the host that was the primary
	closed    bool
}

// A postgresConn is a connection to the primary. name is that of the record that it has, as
// it was accepted; "": it may be any.
type postgresConn struct {
	*pgx.Conn
	age  int
	name string
}

// NewPostgres returns the Store of c. It connects to nothing; the error is about c.
func NewPostgres(c PostgresConfig) (*Postgres, error) {
	all, err := parsePostgres(c)
	if err != nil {
		return nil, err
	}
	if c.Accept == nil {
		c.Accept = Identity.Check
	}
	return &Postgres{config: c, hosts: all, slots: make(chan struct{}, postgresConns)}, nil
}

// TakeAny makes p use any record, also one that is not complete or was moved away, as a
// migration does. It must be called before p is used.
func (p *Postgres) TakeAny() {
	p.any = true
	p.config.Accept = func(Identity) error { return nil }
}

// parsePostgres returns what connects to each host of c.
func parsePostgres(c PostgresConfig) (all []*pgx.ConnConfig, err error) {
	u, hostList, err := splitURL(c.URL)
	if err != nil {
		return nil, err
	}
	if _, has := u.User.Password(); has || u.Query().Has("password") || u.Query().Has("passfile") {
		return nil, errors.New("the URL must have no password: write it into a file, and set password_file")
	}
	if u.User.Username() == "" && !u.Query().Has("user") {
		return nil, errors.New("the URL has no user: postgres://USER@HOST/DATABASE")
	}
	query := u.Query()
	mode := query.Get("sslmode")
	query.Set("sslmode", "disable") // pgx would try without TLS, or read files of the environment
	for _, key := range []string{"sslrootcert", "sslcert", "sslkey", "target_session_attrs"} {
		if query.Has(key) {
			return nil, fmt.Errorf("%s in the URL is not supported: Postern uses the primary alone, and ca names the certificates", key)
		}
	}
	u.RawQuery, u.Host = query.Encode(), hostList
	parsed, err := pgx.ParseConfig(u.String())
	if err != nil {
		return nil, fmt.Errorf("the URL is not one of PostgreSQL: %w", errors.Unwrap(err))
	}
	if parsed.Password != "" && c.PasswordFile != "" {
		parsed.Password = ""
	}
	roots, err := readRoots(c.CA)
	if err != nil {
		return nil, err
	}
	type host struct {
		name string
		port uint16
	}
	hosts := []host{{parsed.Host, parsed.Port}}
	for _, f := range parsed.Fallbacks {
		if h := (host{f.Host, f.Port}); !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	for _, h := range hosts {
		one := parsed.Copy()
		one.Host, one.Port, one.Fallbacks = h.name, h.port, nil
		one.DefaultQueryExecMode = pgx.QueryExecModeExec // one round trip, and nothing is left in the session
		one.StatementCacheCapacity, one.DescriptionCacheCapacity = 0, 0
		one.ConnectTimeout = probeTimeout
		one.DialFunc = (&net.Dialer{}).DialContext
		one.RuntimeParams["application_name"] = "postern"
		local := strings.HasPrefix(h.name, "/") || isLoopback(h.name)
		switch {
		case strings.HasPrefix(h.name, "/"):
		case mode == "disable" && local:
		case mode == "" || mode == "verify-full":
			one.TLSConfig = &tls.Config{RootCAs: roots, ServerName: h.name, MinVersion: tls.VersionTLS12}
		default:
			return nil, fmt.Errorf("sslmode=%s: the connection to %s has to be verify-full, which is the default; disable is for this machine alone", mode, h.name)
		}
		all = append(all, one)
	}
	return all, nil
}

// splitURL returns a URL of PostgreSQL, and its list of hosts, which may have ports: net/url
// takes no such list. The error does not contain the URL, which may have a password.
func splitURL(text string) (u *url.URL, hosts string, err error) {
	const one = "host"
	scheme, rest, _ := strings.Cut(text, "://")
	end := strings.IndexAny(rest+"/", "/?#")
	begin := strings.LastIndexByte(rest[:end], '@') + 1
	hosts = rest[begin:end]
	u, err = url.Parse(scheme + "://" + rest[:begin] + one + rest[end:])
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, "", errors.New("this is not postgres://USER@HOST/DATABASE")
	}
	return u, hosts, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// readRoots reads a file of certificates; "": nil, which stands for those of the system.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate", path)
	}
	return roots, nil
}

// readPassword reads the first line of a file that others may not read.
func readPassword(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o007 != 0 || info.Size() > maxPasswordFile {
		return "", fmt.Errorf("%s has to be a small file that others cannot read: chmod o= %[1]s", path)
	}
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return line, nil
}

// Check returns an error if the files of the configuration cannot be read.
func (p *Postgres) Check() error {
	if p.config.PasswordFile == "" {
		return nil
	}
	_, err := readPassword(p.config.PasswordFile)
	return err
}

// connect connects to the primary that has the record.
func (p *Postgres) connect(ctx context.Context, age int) (c postgresConn, err error) {
	c.age = age
	c.Conn, err = p.connectAnd(ctx, func(ctx context.Context, conn *pgx.Conn) (err error) {
		c.name, err = p.accept(ctx, conn)
		return err
	})
	return c, err
}

// connectAnd connects to the first host that begin takes. The host that was the primary
// before is tried first.
func (p *Postgres) connectAnd(ctx context.Context, begin func(context.Context, *pgx.Conn) error) (*pgx.Conn, error) {
	password := ""
	if p.config.PasswordFile != "" {
		var err error
		if password, err = readPassword(p.config.PasswordFile); err != nil {
			return nil, fmt.Errorf("password of PostgreSQL: %w", err)
		}
	}
	p.mu.Lock()
	first := p.preferred
	p.mu.Unlock()
	var errs []error
	for i := range p.hosts {
		n := (first + i) % len(p.hosts)
		c := p.hosts[n].Copy()
		if password != "" {
			c.Password = password
		}
		conn, err := connectHost(ctx, c, begin)
		if err == nil {
			p.prefer(n)
			return conn, nil
		}
		errs = append(errs, explainPostgres(c, err))
		if ctx.Err() != nil { // the next connection begins with the next host
			p.prefer((n + 1) % len(p.hosts))
			break
		}
	}
	return nil, errors.Join(errs...)
}

// prefer makes the next connection begin with a host.
func (p *Postgres) prefer(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.preferred = n
}

// connectHost connects to the host of c, within postgresHost.
func connectHost(ctx context.Context, c *pgx.ConnConfig, begin func(context.Context, *pgx.Conn) error) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, postgresHost, fmt.Errorf("no answer within %v", postgresHost))
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, withCause(ctx, err)
	}
	if err := begin(ctx, conn); err != nil {
		_ = conn.PgConn().Conn().Close()
		return nil, withCause(ctx, err)
	}
	return conn, nil
}

// explainPostgres returns an error of connecting with what an operator can do. pgx's own has
// all addresses of the host.
func explainPostgres(c *pgx.ConnConfig, err error) error {
	at := net.JoinHostPort(c.Host, fmt.Sprint(c.Port))
	if strings.HasPrefix(c.Host, "/") {
		at = c.Host
	}
	if failed, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		err = failed.Unwrap()
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		err = e.Err // pgx's own has the address three times
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		if e.Code == "42P01" { // undefined_table
			err = ErrNoRecord
		} else {
			err = fmt.Errorf("%s (SQLSTATE %s)", printable([]byte(e.Message)), e.Code)
		}
	}
	return fmt.Errorf("PostgreSQL at %s: %w", at, err)
}

var (
	errGone     = errors.New("the record was moved away")
	errNoAnswer = errors.New("the answer is empty")
)

var errStandby = errors.New("it is a standby, or read-only: only the primary is used")

// setSession sets what a session needs. It returns an error unless conn is one to the primary.
func setSession(ctx context.Context, conn *pgx.Conn) error {
	var standby bool
	if err := conn.QueryRow(ctx, sqlSession).Scan(&standby); err != nil {
		return err
	}
	if standby {
		return errStandby
	}
	return nil
}

// accept returns the name of the record at conn, or an error unless it is the right one, at
// the primary.
func (p *Postgres) accept(ctx context.Context, conn *pgx.Conn) (string, error) {
	var standby bool
	var name, moved []byte
	err := conn.QueryRow(ctx, sqlIdentity, MetaBucket, []byte(IdentityKey), []byte(MovedKey)).Scan(&standby, &name, &moved)
	if err == nil && standby {
		err = errStandby
	}
	if err != nil {
		return "", err
	}
	i := Identity{string(name), string(moved)}
	if err := p.config.Accept(i); err != nil || p.any {
		return "", err
	}
	return i.Name, nil
}

const (
	// A session whose synchronous_commit is off or local says yes to what a crash, or a
	// failover, takes back.
	sqlSession = `SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'
		OR set_config('lock_timeout', '500ms', false) = ''
		OR current_setting('synchronous_commit') IN ('off', 'local') AND set_config('synchronous_commit', 'on', false) = ''`

	sqlIdentity = sqlSession + `, (SELECT value FROM ` + postgresTable + ` WHERE bucket = $1 AND key = $2),
		(SELECT value FROM ` + postgresTable + ` WHERE bucket = $1 AND key = $3)`

	// Whether the record still has the name $1, for which the connection was accepted; '' takes
	// any. A connection of before neither reads nor writes what was moved away.
	sqlValid = `(SELECT $1 = '' OR coalesce((SELECT value FROM ` + postgresTable + ` WHERE bucket = '` + MetaBucket + `' AND key = '` + IdentityKey + `') = convert_to($1, 'UTF8'), false)
		AND NOT EXISTS (SELECT FROM ` + postgresTable + ` WHERE bucket = '` + MetaBucket + `' AND key = '` + MovedKey + `') AS ok)`

	// The answer has a row at least: one that is cut off is never an answer about absence.
	sqlGet = `SELECT ok, key, version, value FROM ` + sqlValid + ` valid LEFT JOIN ` + postgresTable + ` ON bucket = $2 AND key = ANY($3::bytea[])`

	sqlScan = `SELECT ok, key, value FROM ` + sqlValid + ` valid
		LEFT JOIN ` + postgresTable + ` ON bucket = $2 AND key >= $3 AND ($4::bytea IS NULL OR key < $4) ORDER BY key`

	// One statement, and so one transaction: rows that exist are locked and compared as they
	// are after the lock, and a row that another writer inserts is a unique violation.
	sqlSwap = `WITH change AS MATERIALIZED (
			SELECT * FROM unnest($3::bytea[], $4::bigint[], $5::bytea[]) AS c (key, version, value)
		), held AS MATERIALIZED (
			SELECT key, version FROM ` + postgresTable + ` WHERE bucket = $2 AND key = ANY($3::bytea[]) ORDER BY key FOR UPDATE
		), stale AS MATERIALIZED (
			SELECT count(*) AS n FROM change c LEFT JOIN held h ON h.key = c.key WHERE coalesce(h.version, 0) <> c.version
		), may AS MATERIALIZED (
			SELECT ok, ok AND n = 0 AS swap FROM stale, ` + sqlValid + ` valid
		), removed AS (
			DELETE FROM ` + postgresTable + ` r USING change c, may
			WHERE swap AND r.bucket = $2 AND r.key = c.key AND c.value IS NULL
		), replaced AS (
			UPDATE ` + postgresTable + ` r SET version = $6, value = c.value FROM change c, may
			WHERE swap AND r.bucket = $2 AND r.key = c.key AND c.version <> 0 AND c.value IS NOT NULL
		), inserted AS (
			INSERT INTO ` + postgresTable + ` (bucket, key, version, value)
			SELECT $2, c.key, $6, c.value FROM change c, may WHERE swap AND c.version = 0 AND c.value IS NOT NULL
		) SELECT swap, ok FROM may`

	sqlCreate = `CREATE TABLE IF NOT EXISTS ` + postgresTable + ` (
			bucket text NOT NULL, key bytea NOT NULL, version bigint NOT NULL, value bytea NOT NULL, PRIMARY KEY (bucket, key))`
)

// use calls f with a connection. After an error the connection is closed, but for one of
// PostgreSQL about a statement.
func (p *Postgres) use(ctx context.Context, f func(postgresConn) error) error {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-p.slots }()
	conn, err := p.take(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if v := recover(); v != nil { // of a caller's function
			p.drop(conn)
			panic(v)
		}
	}()
	if err = f(conn); err != nil {
		if conn.IsClosed() || conn.PgConn().IsBusy() {
			p.drop(conn)
			return statementError(err)
		}
		err = statementError(err)
	}
	p.give(conn)
	return err
}

// statementError returns err. An error about the values of a statement is errPermanent.
func statementError(err error) error {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return err
	}
	clean := fmt.Errorf("PostgreSQL: %s (SQLSTATE %s)", printable([]byte(e.Message)), e.Code)
	switch {
	case strings.HasPrefix(e.Code, "22"), strings.HasPrefix(e.Code, "23"), strings.HasPrefix(e.Code, "54"): // data, constraint, limit
		return fmt.Errorf("%w: %w", errPermanent, clean)
	case e.Code == "55P03": // lock_not_available: one key
		return fmt.Errorf("%w: %w", errBusy, clean)
	case e.Code == "42P01":
		return fmt.Errorf("%w: %w", ErrNoRecord, clean)
	}
	return clean
}

// take returns an idle connection, or a new one.
func (p *Postgres) take(ctx context.Context) (postgresConn, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return postgresConn{}, errClosed
	}
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return c, nil
	}
	age := p.age
	p.mu.Unlock()
	return p.connect(ctx, age)
}

// give keeps a connection for the next use.
func (p *Postgres) give(c postgresConn) {
	p.mu.Lock()
	if !p.closed && c.age == p.age && !c.IsClosed() {
		p.idle = append(p.idle, c)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.drop(c)
}

// drop closes a connection without a word: nobody may wait for a server that does not answer.
func (*Postgres) drop(c postgresConn) { _ = c.PgConn().Conn().Close() }

// Probe implements Store.
func (p *Postgres) Probe(ctx context.Context) error {
	p.mu.Lock()
	old := p.idle
	p.age++
	age := p.age
	p.idle = nil
	p.mu.Unlock()
	for _, c := range old {
		p.drop(c)
	}
	conn, err := p.connect(ctx, age)
	if err == nil {
		p.give(conn)
	}
	return err
}

// Close implements Store.
func (p *Postgres) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.idle {
		p.drop(c)
	}
	p.idle = nil
	return nil
}

// Get implements Store.
func (p *Postgres) Get(ctx context.Context, bucket string, keys []string) ([]Versioned, error) {
	found := make(map[string]Versioned, len(keys))
	err := p.use(ctx, func(conn postgresConn) error {
		rows, err := conn.Query(ctx, sqlGet, conn.name, bucket, octets(keys))
		if err != nil {
			return err
		}
		defer rows.Close()
		answered := false
		for rows.Next() {
			var ok bool
			var key []byte
			var version *int64
			var v Versioned
			if err := rows.Scan(&ok, &key, &version, &v.Value); err != nil {
				return err
			}
			if answered = true; !ok {
				return errGone
			}
			if version != nil {
				v.Version = *version
				found[string(key)] = v
			}
		}
		if err := rows.Err(); err != nil || answered {
			return err
		}
		return errNoAnswer
	})
	if err != nil {
		return nil, err
	}
	values := make([]Versioned, len(keys))
	for i, key := range keys {
		values[i] = found[key]
	}
	return values, nil
}

func octets(keys []string) [][]byte {
	all := make([][]byte, len(keys))
	for i, key := range keys {
		all[i] = []byte(key)
	}
	return all
}

// Swap implements Store.
func (p *Postgres) Swap(ctx context.Context, bucket string, changes []Change) (swapped bool, err error) {
	keys, versions, values := make([][]byte, len(changes)), make([]int64, len(changes)), make([][]byte, len(changes))
	for i, c := range changes {
		keys[i], versions[i], values[i] = []byte(c.Key), c.Version, c.Value
	}
	version := rand.Int64N(1<<62) + 1 // a key that is removed and comes back has never had it
	err = p.use(ctx, func(conn postgresConn) error {
		var valid bool
		err := conn.QueryRow(ctx, sqlSwap, conn.name, bucket, keys, versions, values, version).Scan(&swapped, &valid)
		if err == nil && !valid {
			return errGone
		}
		if e, ok := errors.AsType[*pgconn.PgError](err); ok {
			switch e.Code {
			case "23505", "40001", "40P01": // unique_violation, serialization_failure, deadlock_detected: nothing was changed
				swapped, err = false, nil
			}
		}
		return err
	})
	return swapped && err == nil, err
}

// Scan implements Store.
func (p *Postgres) Scan(ctx context.Context, bucket, prefix string, each func(key string, value []byte) error) error {
	return p.use(ctx, func(conn postgresConn) error {
		rows, err := conn.Query(ctx, sqlScan, conn.name, bucket, []byte(prefix), after(prefix))
		if err != nil {
			return err
		}
		ended := false
		defer func() {
			if !ended { // the rest may be long
				_ = conn.PgConn().Conn().Close()
			}
			rows.Close()
		}()
		answered := false
		for rows.Next() {
			var ok bool
			var key, value []byte
			if err := rows.Scan(&ok, &key, &value); err != nil {
				return err
			}
			if answered = true; !ok {
				return errGone
			}
			if value == nil {
				continue // there are none
			}
			if err := each(string(key), value); err != nil {
				return err
			}
		}
		ended = true
		if err := rows.Err(); err != nil || answered {
			return err
		}
		return errNoAnswer
	})
}

// after returns the first key after all that begin with prefix; nil: there is none.
func after(prefix string) []byte {
	for end := []byte(prefix); len(end) > 0; end = end[:len(end)-1] {
		if last := &end[len(end)-1]; *last < 0xff {
			*last++
			return end
		}
	}
	return nil
}

// Prepare makes the table, if it is not there. It begins no record.
func (p *Postgres) Prepare(ctx context.Context) error {
	conn, err := p.connectAnd(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		if err := setSession(ctx, conn); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, sqlCreate)
		return err
	})
	if err == nil {
		p.drop(postgresConn{Conn: conn})
	}
	return err
}

// A PostgresDurability says what a crash and a failover may take back.
type PostgresDurability struct {
	Host              string
	Fsync             bool   // commits are on the primary's disk
	SynchronousCommit string // of Postern's sessions
	Standbys          string // synchronous_standby_names; "": a commit waits for no standby
}

// Durability asks the primary what its commits are worth.
func (p *Postgres) Durability(ctx context.Context) (d PostgresDurability, err error) {
	err = p.use(ctx, func(conn postgresConn) error {
		d.Host = net.JoinHostPort(conn.Config().Host, fmt.Sprint(conn.Config().Port))
		return conn.QueryRow(ctx, `SELECT current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on',
			current_setting('synchronous_commit'), current_setting('synchronous_standby_names')`).Scan(&d.Fsync, &d.SynchronousCommit, &d.Standbys)
	})
	return d, err
}
